"""Sizes of pictures, and the size to generate at for an upload."""

import math
from dataclasses import dataclass

from app.errors import InvalidImageError
from app.settings import MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE

_PREFERRED_PIXELS = 512 * 512  # area at which SDXL-Turbo is best (model card)
_MAX_ASPECT = MAX_SIDE // MIN_SIDE  # the longer side of an output, divided by the shorter side, at most


@dataclass(frozen=True, slots=True)
class Size:
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def pixels(self) -> int:
        return self.width * self.height


def preferred_size(size: Size, *, max_pixels: int) -> Size:
    """Return the size with the aspect of `size` at which SDXL-Turbo is best: about 512x512 pixels in all.

    Each side is rounded to a multiple of 8. A very long picture has fewer pixels, because its sides are bounded.

    Raises:
        InvalidImageError: No allowed size has the aspect.
    """
    if max(size.width, size.height) > _MAX_ASPECT * min(size.width, size.height):
        raise InvalidImageError(
            f"The picture has {size} pixels, and an aspect beyond {_MAX_ASPECT}:1 cannot be kept. Send the output's "
            "width and height to have the picture cropped about its centre, or crop it first.",
            param="image",
        )
    scale = math.sqrt(min(_PREFERRED_PIXELS, max_pixels) / size.pixels)
    scale = min(scale, MAX_SIDE / max(size.width, size.height))
    while (scaled := _rounded(size, scale)).pixels > max_pixels:
        scale *= 0.998  # if rounding has made the size too large: less by at most a pixel of the shorter side
    return scaled


def _rounded(size: Size, scale: float) -> Size:
    """Return the allowed size nearest to the scaled one."""
    width, height = (round(side * scale / SIDE_MULTIPLE) * SIDE_MULTIPLE for side in (size.width, size.height))
    return Size(min(MAX_SIDE, max(MIN_SIDE, width)), min(MAX_SIDE, max(MIN_SIDE, height)))
