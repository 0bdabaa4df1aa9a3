"""The pictures that are asked for, what each should look like, and whether an answer is the picture."""

import io
import itertools
import json
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
_KEPT_PROMPT = "a red circle on a blue background"


class Prompts(StrEnum):
    """What requests have in common."""

    FRESH = "fresh"
    """Every request has a prompt and a seed of its own: no cache of prompts can help."""

    KEPT = "kept"
    """One prompt, every request another seed: a cache of prompts helps from the second on."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One square picture: the `number`-th of its kind, whose prompt and seed follow from that."""

    side: int
    prompts: Prompts
    number: int

    @property
    def prompt(self) -> str:
        """Below CLIP's 77 tokens also where every byte is one."""
        if self.prompts is Prompts.KEPT:
            return _KEPT_PROMPT
        thing, colour, place = (words[self.number % len(words)] for words in (_THINGS, _COLOURS, _PLACES))
        return f"{self.number} {colour} {thing} {place}"

    @property
    def seed(self) -> int:
        """The number serves."""
        return self.number

    @property
    def body(self) -> bytes:
        """The request: the service and all its peers read the same one."""
        fields = {"prompt": self.prompt, "seed": self.seed, "width": self.side, "height": self.side}
        return json.dumps(fields).encode()


@dataclass
class Supply:
    """Hands out pictures to one server, none twice; every server gets the same ones in the same order."""

    _numbers: dict[tuple[int, Prompts], "itertools.count[int]"] = field(default_factory=dict)

    def take(self, count: int, side: int, prompts: Prompts) -> list[Picture]:
        """Take the next `count` of a kind."""
        numbers = self._numbers.setdefault((side, prompts), itertools.count())
        return [Picture(side, prompts, number) for number in itertools.islice(numbers, count)]


@dataclass
class Verdict:
    """How many answers are diffusers' own picture exactly or within 1/255 in every channel, and what the rest are."""

    exact: int = 0
    near: int = 0
    bad: list[str] = field(default_factory=list)


class References:
    """The pictures as diffusers' own pipeline makes them, one at a time, from the same weights (`references.py`)."""

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
            verdict.bad.append(f"no picture: {error}")
            return
        if pixels.shape != (picture.side, picture.side, 3):
            verdict.bad.append(f"shape {pixels.shape} and not {picture.side}")
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
        OSError: It is none.
    """
    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            return np.asarray(image)
    except (SyntaxError, ValueError) as error:  # Pillow's words for a PNG that breaks off
        raise OSError(str(error)) from error


def difference(one: Pixels, other: Pixels) -> int:
    """Return the largest difference of a channel, of 255."""
    return int(np.abs(one.astype(np.int16) - other.astype(np.int16)).max())


def file_of(folder: Path, side: int, prompts: Prompts) -> Path:
    """Name the file of the references of one kind: an array (number, side, side, 3) of bytes."""
    return folder / f"{prompts}-{side}.npy"
