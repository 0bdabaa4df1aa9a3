"""Pictures to files: PNG, WebP or JPEG."""

import io
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from PIL import Image

from app.images.png import encode_png
from app.images.provenance import Provenance, user_comment

LOSSY_QUALITY = 90


class MediaType(StrEnum):
    """The media types of pictures that are sent."""

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
    """Turn an RGB picture into a file. Blocks; call it in a thread.

    The bytes depend on the arguments and the encoders alone: no clock, no host, no library's name.

    Args:
        pixels: The picture, of shape (height, width, 3).
        media_type: The file's format.
        quality: Of WebP and JPEG, from 0 to 100; 90 if left out.
        provenance: What the file says about the picture; nothing if left out.
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
