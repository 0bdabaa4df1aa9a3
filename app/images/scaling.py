"""Scales pictures, large ones in bands of rows, so that none is in memory twice."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from app.images.sizes import Size

FloatBox = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of a picture, in pixels."""

Rows = Callable[[int, int], Image.Image]
"""Returns rows of a picture, from the first number to before the second."""

_WHOLE_PIXELS = 1 << 22  # pixels up to which a picture is scaled as a whole

_BAND_PIXELS = 1 << 20
"""Pixels that are converted in one call, in up to five copies. Pillow blends 4 megapixels in 25 ms, holding the GIL."""

_LANCZOS_SUPPORT = 3


def bands(width: int, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Divide rows of a picture into bands; return each band's first row and the row behind its last."""
    rows = max(1, _BAND_PIXELS // width)
    return ((start, min(start + rows, last)) for start in range(first, last, rows))


def covering_box(size: Size, target: Size) -> FloatBox:
    """Return the largest part of a picture, about its centre, that has the target's aspect."""
    scale = min(size.width / target.width, size.height / target.height)
    left = max(0.0, (size.width - target.width * scale) / 2)
    top = max(0.0, (size.height - target.height * scale) / 2)
    return left, top, size.width - left, size.height - top


def is_large(size: Size) -> bool:
    """Tell whether a picture is scaled in bands."""
    return size.pixels > _WHOLE_PIXELS


def scale_rows(rows: Rows, size: Size, box: FloatBox, target: Size) -> Image.Image:
    """Scale the box of a large RGB picture to the target.

    Each band of rows is scaled across before the next is read, and the result is scaled down. Pillow scales in this
    order too: the pixels are the same, or are rounded in another order.
    """
    left, top, right, bottom = box
    reach = _LANCZOS_SUPPORT * max(1.0, (bottom - top) / target.height)
    first, last = max(0, int(top - reach)), min(size.height, math.ceil(bottom + reach))
    across = Image.new("RGB", (target.width, last - first))
    for start, end in bands(size.width, first, last):
        band = rows(start, end)
        within = (left, 0, right, band.height)
        across.paste(band.resize((target.width, band.height), Image.Resampling.LANCZOS, within), (0, start - first))
    height = (0, top - first, target.width, bottom - first)
    return across.resize((target.width, target.height), Image.Resampling.LANCZOS, height)


def scale(pixels: npt.NDArray[np.uint8], box: FloatBox, target: Size) -> Image.Image:
    """Scale the box of an RGB picture, of shape (height, width, 3), to the target."""
    size = Size(pixels.shape[1], pixels.shape[0])
    if is_large(size):
        return scale_rows(lambda start, end: Image.fromarray(pixels[start:end]), size, box, target)
    return Image.fromarray(pixels).resize((target.width, target.height), Image.Resampling.LANCZOS, box)
