"""The service under test, and the pictures that its own routes make."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import httpx
from PIL import ExifTags, Image

WRONG_KEY = "The service does not know this API key."

_PREFIX = b"UNICODE\0"


class Drawing(NamedTuple):
    """What is compared of a picture. Some programs encode pictures again, so files are not compared."""

    format: str | None
    size: tuple[int, int]
    pixels: str
    """A digest."""

    @classmethod
    def of(cls, file: bytes) -> Self:
        """Decode a picture's file."""
        with Image.open(io.BytesIO(file)) as image:
            return cls(image.format, image.size, hashlib.sha256(image.convert("RGB").tobytes()).hexdigest())


def seed_of(file: bytes) -> int:
    """Return the seed that a file's metadata has."""
    with Image.open(io.BytesIO(file)) as image:
        comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
        text = image.info["parameters"] if comment is None else comment.removeprefix(_PREFIX).decode("utf-16-be")
    return int(text.partition("Seed: ")[2].partition(",")[0])


class Masks(NamedTuple):
    """The files with masks of one part of a picture, in the forms that programs send. They lie beside the picture."""

    white_is_drawn: Path
    black_is_drawn: Path
    clear_is_drawn: Path


def masks_of(picture: Path) -> Masks:
    """Return the masks' paths. The scripts know their names too."""
    return Masks(*(picture.with_name(f"{name}.png") for name in ("white", "black", "clear")))


@dataclass(frozen=True, kw_only=True)
class Service:
    """The service's address, and the key that programs send it."""

    url: str
    key: str

    def from_text(self, seed: int, media_type: str = "image/png", /, **fields: Any) -> Drawing:
        """Make a picture with `/txt2img`, of a fox if `fields` has no prompt."""
        return self._drawn("txt2img", media_type, json={"prompt": "a fox", "seed": seed, **fields})

    def from_picture(self, picture: Path, seed: int, media_type: str = "image/png", /, **fields: Any) -> Drawing:
        """Make a picture from a picture with `/img2img`, of a fox if `fields` has no prompt."""
        form = {"prompt": "a fox", "seed": seed, **fields}
        return self._drawn("img2img", media_type, data=form, files={"image": picture.read_bytes()})

    def from_mask(self, picture: Path, seed: int, media_type: str = "image/png", /, **fields: Any) -> Drawing:
        """Draw what the mask of a picture shows with `/inpaint`, as a fox if `fields` has no prompt."""
        form = {"prompt": "a fox", "seed": seed, **fields}
        files = {"image": picture.read_bytes(), "mask": masks_of(picture).white_is_drawn.read_bytes()}
        return self._drawn("inpaint", media_type, data=form, files=files)

    def _drawn(self, route: str, media_type: str, **body: Any) -> Drawing:
        headers = {"X-API-Key": self.key, "Accept": media_type}
        answer = httpx.post(f"{self.url}/{route}", headers=headers, timeout=60, **body)
        assert answer.is_success, answer.text
        assert answer.headers["content-type"] == media_type
        return Drawing.of(answer.content)
