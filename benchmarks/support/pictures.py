"""The requested pictures, their references, and the comparison of answers with them."""

import io
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]

_THINGS = ("boat", "castle", "dragon", "forest", "guitar", "horse", "lamp", "mountain", "parrot", "robot", "tower")
_COLOURS = ("amber", "black", "blue", "crimson", "green", "ivory", "orange", "purple", "silver")
_PLACES = ("at dawn", "in the snow", "by the sea", "under stars", "in a garden")
_BOUNDARY = "the-picture-ends-here"
_KEPT_PROMPT = "a red circle on a blue background"


class Prompts(StrEnum):
    """Whether requests share a prompt."""

    FRESH = "fresh"
    """Every request has its own prompt and seed, so a cache of prompts does not help."""

    KEPT = "kept"
    """All requests have one prompt and different seeds, so a cache of prompts helps from the second request on."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One square picture: the `number`-th of its kind. The number decides prompt and seed."""

    side: int
    prompts: Prompts
    number: int

    @property
    def prompt(self) -> str:
        """The prompt, shorter than CLIP's 77 tokens even if every byte is a token."""
        if self.prompts is Prompts.KEPT:
            return _KEPT_PROMPT
        thing, colour, place = (words[self.number % len(words)] for words in (_THINGS, _COLOURS, _PLACES))
        return f"{self.number} {colour} {thing} {place}"

    @property
    def seed(self) -> int:
        return self.number

    @property
    def body(self) -> bytes:
        """The request's JSON body, which is the same for the service and all its peers."""
        fields = {"prompt": self.prompt, "seed": self.seed, "width": self.side, "height": self.side}
        return json.dumps(fields).encode()

    @property
    def content_type(self) -> str:
        return "application/json"


@dataclass(frozen=True, slots=True)
class Edit(Picture):
    """One picture by image to image with the service's defaults: 2 steps at strength 0.5, so the model runs 1 step."""

    upload: bytes
    """A PNG."""

    @property
    def files(self) -> Mapping[str, bytes]:
        """The form's files by field; all are PNGs."""
        return {"image": self.upload}

    @property
    def body(self) -> bytes:
        """The request's form."""
        fields = {"prompt": self.prompt, "seed": self.seed, "width": self.side, "height": self.side}
        parts = [
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        ]
        form = "".join(parts).encode()
        for name, file in self.files.items():
            head = (
                f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}.png"\r\n'
                "Content-Type: image/png\r\n\r\n"
            )
            form += head.encode() + file + b"\r\n"
        return form + f"--{_BOUNDARY}--\r\n".encode()

    @property
    def content_type(self) -> str:
        return f"multipart/form-data; boundary={_BOUNDARY}"


@dataclass(frozen=True, slots=True)
class MaskedEdit(Edit):
    """One picture by inpainting with the service's defaults: the model runs 4 steps, and draws the left half."""

    @property
    def files(self) -> Mapping[str, bytes]:
        mask, file = Image.new("L", (self.side, self.side)), io.BytesIO()
        mask.paste(255, (0, 0, self.side // 2, self.side))
        mask.save(file, "PNG")
        return {"image": self.upload, "mask": file.getvalue()}


@dataclass
class Supply:
    """The pictures for one server, each used once. Every server gets the same pictures in the same order."""

    _numbers: dict[tuple[int, Prompts], "itertools.count[int]"] = field(default_factory=dict)

    def take(self, count: int, side: int, prompts: Prompts) -> list[Picture]:
        """Take the next `count` of a kind."""
        numbers = self._numbers.setdefault((side, prompts), itertools.count())
        return [Picture(side, prompts, number) for number in itertools.islice(numbers, count)]


@dataclass
class Verdict:
    """How many answers equal diffusers' own picture, or differ by at most 1/255; and what is wrong with the others."""

    exact: int = 0
    near: int = 0
    bad: list[str] = field(default_factory=list)


class References:
    """The pictures that diffusers' own pipeline makes one at a time from the same weights (`references.py`)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._arrays: dict[tuple[int, Prompts], Pixels] = {}

    def judge(self, picture: Picture, status: int, body: bytes, verdict: Verdict) -> None:
        """Add one answer to the verdict."""
        if status != 200:  # noqa: PLR2004 - HTTP's own
            verdict.bad.append(f"status {status}: {body[:80]!r}")
            return
        try:
            pixels = decode(body)
        except OSError as error:
            verdict.bad.append(f"not a PNG: {error}")
            return
        if pixels.shape != (picture.side, picture.side, 3):
            verdict.bad.append(f"shape {pixels.shape} instead of side {picture.side}")
            return
        off = difference(pixels, self._load(picture.side, picture.prompts)[picture.number])
        if off > 1:
            verdict.bad.append(f"another picture: off by {off}/255")
        elif off:
            verdict.near += 1
        else:
            verdict.exact += 1

    def _load(self, side: int, prompts: Prompts) -> Pixels:
        if (side, prompts) not in self._arrays:
            self._arrays[side, prompts] = np.load(file_of(self._folder, side, prompts), mmap_mode="r")
        return self._arrays[side, prompts]


def decode(png: bytes) -> Pixels:
    """Read a PNG.

    Raises:
        OSError: The bytes are not a PNG.
    """
    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            return np.asarray(image)
    except (SyntaxError, ValueError) as error:  # Pillow raises these for a truncated PNG
        raise OSError(str(error)) from error


def difference(one: Pixels, other: Pixels) -> int:
    """Return the largest difference in any channel (0 to 255)."""
    return int(np.abs(one.astype(np.int16) - other.astype(np.int16)).max())


def file_of(folder: Path, side: int, prompts: Prompts) -> Path:
    """Return the file with the references of one kind: an array (number, side, side, 3) of bytes."""
    return folder / f"{prompts}-{side}.npy"
