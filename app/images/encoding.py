"""Encodes pictures as PNG, WebP or JPEG files."""

import io
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from PIL import Image

from app.images.png import encode_png
from app.images.provenance import Provenance, user_comment

LOSSY_QUALITY = 90


class MediaType(StrEnum):
    """Formats that pictures are sent in."""

    PNG = "image/png"
    WEBP = "image/webp"
    JPEG = "image/jpeg"


def encode_image(
    pixels: npt.NDArray[np.uint8],
    media_type: MediaType,
    *,
    quality: int | None = None,
    provenance: Provenance | None = None,
) -> bytes:
    """Encode an RGB picture of shape (height, width, 3). Blocks; call it in a thread.

    The quality, 0 to 100, is for WebP and JPEG; `LOSSY_QUALITY` if None. The bytes depend only on the arguments and the
    encoders: the file contains no time, host or library name.
    """
    said = provenance or Provenance()
    if media_type is MediaType.PNG:
        return encode_png(pixels, text=said.parameters, xmp=said.xmp)
    file = io.BytesIO()
    Image.fromarray(pixels).save(
        file,
        media_type.removeprefix("image/"),
        quality=LOSSY_QUALITY if quality is None else quality,
        exif=b"" if said.parameters is None else user_comment(said.parameters),
        xmp=said.xmp or b"",
    )
    return file.getvalue()
