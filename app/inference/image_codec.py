"""Pictures in and out: bytes to a checked RGB image, and pixels to PNG, WebP or JPEG."""

import io
import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from app.errors import ImageTooLargeError, InvalidImageError, UnsupportedImageError
from app.inference.png import encode_png
from app.settings import MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE

_PREFERRED_PIXELS = 512 * 512
"""Area that SDXL-Turbo is best at (model card)."""

_UPLOAD_FORMATS = ("PNG", "JPEG", "WEBP")

_LOSSY_QUALITY = 90

_HIGH_BYTE = [value >> 8 for value in range(1 << 16)]
"""Lookup table from 16-bit to 8-bit grey."""


class MediaType(StrEnum):
    """The media types of pictures that are sent."""

    PNG = "image/png"
    WEBP = "image/webp"
    JPEG = "image/jpeg"


@dataclass(frozen=True, slots=True)
class Size:
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.width * self.height


def decode_image(data: bytes, *, size: Size | None, max_upload_pixels: int, max_pixels: int) -> Image.Image:
    """Turn an uploaded file into an RGB picture of the size to generate at. Blocks; call it in a thread.

    The header is looked at before anything is decoded. EXIF orientation is honoured, transparency is laid on white.
    The picture is scaled to cover the size and cropped about its centre.

    Args:
        data: The file's bytes.
        size: The output's size; without one, the picture's aspect at about 512x512 pixels, sides multiples of 8.
        max_upload_pixels: Pixels that the upload may have.
        max_pixels: Pixels that the output may have.

    Raises:
        UnsupportedImageError: The bytes are no PNG, JPEG or WebP.
        ImageTooLargeError: The header names more than `max_upload_pixels`.
        InvalidImageError: The picture is animated, truncated or damaged.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_UPLOAD_FORMATS)
    except UnidentifiedImageError as error:
        raise UnsupportedImageError("The file is no PNG, JPEG or WebP picture.", param="image") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(max_upload_pixels) from error
    except Exception as error:  # as below
        raise _damaged() from error
    with image:
        if image.width * image.height > max_upload_pixels:
            raise _too_large(max_upload_pixels)
        if getattr(image, "is_animated", False) and image.format != "MPO":  # a camera's JPEG with a preview behind it
            raise InvalidImageError("The picture is animated; send a single frame.", param="image")
        try:
            image.load()
            upright = ImageOps.exif_transpose(image)
        except Exception as error:  # whatever a damaged file makes a decoder raise: struct.error, EOFError, ...
            raise _damaged() from error
    target = size or preferred_size(Size(upright.width, upright.height), max_pixels=max_pixels)
    return ImageOps.fit(_as_rgb(upright), (target.width, target.height), Image.Resampling.LANCZOS)


def _too_large(max_upload_pixels: int) -> ImageTooLargeError:
    return ImageTooLargeError(f"The picture has more than {max_upload_pixels} pixels.", param="image")


def _damaged() -> InvalidImageError:
    return InvalidImageError("The picture is truncated or damaged.", param="image")


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips instead of scaling
        return image.convert("I").point(_HIGH_BYTE, "L").convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def preferred_size(size: Size, *, max_pixels: int) -> Size:
    """Return the size nearest to `size` in aspect that SDXL-Turbo is best at: about 512x512 pixels in all."""
    scale = math.sqrt(min(_PREFERRED_PIXELS, max_pixels) / size.pixels)
    # A very long picture keeps its aspect, not its area, as far as the shortest side allows.
    scale = min(scale, MAX_SIDE / max(size.width, size.height))
    width, height = _allowed_side(size.width * scale), _allowed_side(size.height * scale)
    while width * height > max_pixels:
        if width >= height:
            width -= SIDE_MULTIPLE
        else:
            height -= SIDE_MULTIPLE
    return Size(width, height)


def _allowed_side(side: float) -> int:
    return min(MAX_SIDE, max(MIN_SIDE, round(side / SIDE_MULTIPLE) * SIDE_MULTIPLE))


def encode_image(pixels: npt.NDArray[np.uint8], media_type: MediaType, *, text: str | None = None) -> bytes:
    """Turn an RGB picture into a file. Blocks; call it in a thread.

    The bytes depend on the arguments and the encoders alone: no clock, no host, no library's name.

    Args:
        pixels: The picture, of shape (height, width, 3).
        media_type: The file's format.
        text: What a PNG carries under the keyword `parameters`: as Latin-1 (tEXt) if it fits, else as UTF-8 (iTXt).
    """
    if media_type is MediaType.PNG:
        return encode_png(pixels, text=text)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, media_type.removeprefix("image/"), quality=_LOSSY_QUALITY)
    return file.getvalue()


def parameters_text(
    *,
    prompt: str,
    steps: int,
    seed: int,
    size: Size,
    model: str,
    strength: float | None = None,
) -> str:
    """Write a picture's parameters as stable-diffusion-webui does, so that the tools that read its files read ours."""
    fields = {
        "Steps": steps,
        "Sampler": "Euler a",
        "CFG scale": 0,
        "Seed": seed,
        "Size": size,
        "Model": model,
    }
    if strength is not None:
        fields["Denoising strength"] = strength
    return f"{prompt}\n" + ", ".join(f"{name}: {value}" for name, value in fields.items())
