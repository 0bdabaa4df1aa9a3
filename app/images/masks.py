"""Masks: which part of a picture is drawn anew, and how the drawn part is put back.

A mask is a picture in mode L: white (255) is drawn, black (0) stays, grey blends.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from app.errors import InvalidImageError, TurboError
from app.images.decoding import Pixels, decode_whole
from app.images.memory import waiting_array
from app.images.scaling import bands
from app.images.sizes import Size
from app.settings import MIN_SIDE, SIDE_MULTIPLE, Settings

Box = tuple[int, int, int, int]
"""Left, top, right and bottom of a part of a picture, in pixels; right and bottom are outside."""

_NEARLY = 8
"""Levels this near to black or white count as black or white, because a JPEG's black is not always 0."""

_MAX_ASPECT = 4
"""Longer side of a region divided by its shorter side, at most, if the picture is large enough."""


class MaskReading(StrEnum):
    """The meaning of a mask file with transparency. A file without transparency is always read as `LUMINANCE`."""

    LUMINANCE = "luminance"
    """White is drawn; transparent parts stay."""
    OPACITY = "opacity"
    """Opaque parts are drawn, in any colour."""
    TRANSPARENCY = "transparency"
    """Transparent parts are drawn, in any colour."""


def decode_mask(
    data: bytes | memoryview, size: Size, settings: Settings, *, reading: MaskReading = MaskReading.LUMINANCE
) -> Image.Image:
    """Decode an uploaded mask, and scale it to the picture's size. Blocks; call it in a thread.

    Raises:
        InvalidImageError: The mask has another aspect than the picture.
        TurboError: The file is not a usable picture.
    """
    try:
        grey, opacity = decode_whole(data, settings, grey=True)
    except TurboError as error:
        error.param = "mask"
        raise
    found = Size(grey.shape[1], grey.shape[0])
    if abs(found.width * size.height - found.height * size.width) > max(
        found.width, found.height, size.width, size.height
    ):
        raise InvalidImageError(
            f"The mask has {found} pixels, and the picture has {size}. Both must have the same aspect.", param="mask"
        )
    mask = _read(Image.fromarray(grey), None if opacity is None else Image.fromarray(opacity), reading)
    return clean(mask if found == size else mask.resize((size.width, size.height), Image.Resampling.BILINEAR))


def _read(grey: Image.Image, opacity: Image.Image | None, reading: MaskReading) -> Image.Image:
    if opacity is None:
        return grey
    if reading is MaskReading.OPACITY:
        return opacity
    if reading is MaskReading.TRANSPARENCY:
        return ImageChops.invert(opacity)
    return ImageChops.subtract(grey, ImageChops.invert(opacity))  # it is blended with white


def clean(mask: Image.Image) -> Image.Image:
    """Return the mask with levels near to black made black, and levels near to white made white."""
    levels = [0 if level < _NEARLY else 255 if level > 255 - _NEARLY else level for level in range(256)]
    return mask.point(levels)


def choose_region(mask: Image.Image, *, margin: int, aspect: float | None) -> Box:
    """Return the part of the picture that is drawn: what the mask covers, and `margin` pixels around it.

    It has sides of at least 64 pixels and an aspect of at most 4:1, or the given one (width / height), as far as the
    picture has room.

    Raises:
        InvalidImageError: The mask is black.
    """
    left, top, right, bottom = drawn_box(mask)
    left, right = max(0, left - margin), min(mask.width, right + margin)
    top, bottom = max(0, top - margin), min(mask.height, bottom + margin)
    width, height = max(MIN_SIDE, right - left), max(MIN_SIDE, bottom - top)
    if aspect is None:
        width, height = max(width, height // _MAX_ASPECT), max(height, width // _MAX_ASPECT)
    else:
        width, height = max(width, round(height * aspect)), max(height, round(width / aspect))
    left, right = _widened(left, right, width, mask.width)
    top, bottom = _widened(top, bottom, height, mask.height)
    return left, top, right, bottom


def _widened(start: int, end: int, length: int, limit: int) -> tuple[int, int]:
    """Return a span of this length about the same centre, within 0 to `limit`."""
    length = min(length, limit)
    start = max(0, min(limit - length, start - (length - (end - start)) // 2))
    return start, start + length


def drawn_box(mask: Image.Image) -> Box:
    """Return the box around what the mask draws.

    Raises:
        InvalidImageError: The mask is black.
    """
    box = mask.getbbox()
    if box is None:
        raise InvalidImageError("The mask is black, so nothing would be drawn. White is drawn anew.", param="mask")
    return box


def whole_blocks(mask: Image.Image, size: Size) -> Image.Image:
    """Scale a mask to the size to draw at, and draw every block of 8x8 pixels that it touches, as latents have them.

    The result has the levels 0 and 255 only.
    """
    blocks = np.asarray(mask)
    for axis, side in enumerate((size.height, size.width)):
        blocks = _largest_of_each(blocks, side // SIDE_MULTIPLE, axis)
    drawn = (blocks > 0) * np.uint8(255)
    return Image.fromarray(drawn.repeat(SIDE_MULTIPLE, 0).repeat(SIDE_MULTIPLE, 1))


def _largest_of_each(levels: Pixels, parts: int, axis: int) -> Pixels:
    """Divide an axis into equal parts, and return the largest level of each; rows on an edge belong to both parts."""
    length = levels.shape[axis]
    edges = np.arange(parts + 1) * length / parts
    first, last = np.floor(edges[:-1]).astype(int), np.ceil(edges[1:]).astype(int)
    bounds = np.stack([first, np.minimum(last, length - 1)], 1).ravel()  # each second result is dropped
    largest: Pixels = np.maximum.reduceat(levels, bounds, axis=axis).take(range(0, 2 * parts, 2), axis)
    ends: Pixels = levels.take(last - 1, axis)
    return np.maximum(largest, ends)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Paste:
    """How a drawn region is put back.

    Attributes:
        onto: The RGB picture that keeps its pixels where nothing is drawn, of shape (height, width, 3). Several
            pictures share it; it never changes.
        region: The part of it that was drawn.
        share: How much of each pixel is new, of 255, in a part of the picture that begins at `corner`.
        corner: Left and top of `share`.
    """

    onto: Pixels
    region: Box
    share: Pixels
    corner: tuple[int, int]

    @classmethod
    def of(cls, onto: Pixels, mask: Image.Image, region: Box, *, feather: int) -> Self:
        """Return how to put back what the mask draws in this region, with a soft edge of `feather` pixels outside."""
        left, top, right, bottom = drawn_box(mask)
        box = (
            max(region[0], left - feather),
            max(region[1], top - feather),
            min(region[2], right + feather),
            min(region[3], bottom + feather),
        )
        soft = feathered(mask.crop(box), feather)
        share = waiting_array((soft.height, soft.width))
        for start, end in bands(soft.width, 0, soft.height):
            share[start:end] = np.asarray(soft.crop((0, start, soft.width, end)))
        return cls(onto=onto, region=region, share=share, corner=box[:2])

    def __call__(self, pixels: Pixels) -> Pixels:
        """Return the whole picture, of shape (height, width, 3), with the drawn region put back. Blocks."""
        left, top, right, bottom = self.region
        drawn = Image.fromarray(pixels)
        across, down = drawn.width / (right - left), drawn.height / (bottom - top)
        whole = self.onto.copy()
        (height, width), (x, y) = self.share.shape, self.corner
        for start, end in bands(width, 0, height):
            box = ((x - left) * across, (y + start - top) * down, (x + width - left) * across, (y + end - top) * down)
            part = drawn.resize((width, end - start), Image.Resampling.LANCZOS, box)
            below = whole[y + start : y + end, x : x + width]
            below[:] = np.asarray(Image.composite(part, Image.fromarray(below), Image.fromarray(self.share[start:end])))
        return whole


def feathered(mask: Image.Image, width: int) -> Image.Image:
    """Return the mask with a soft edge outside of what it draws: white stays white, and `width` pixels away is black.

    The mask grows by half the width and is then blurred by as much.
    """
    grown = width // 2
    edges = (width - grown) // 2, (width - grown + 1) // 2
    soft = Image.fromarray(np.ascontiguousarray(_grown(np.asarray(mask), grown)))
    for radius in edges:
        soft = soft.filter(ImageFilter.BoxBlur(radius)) if radius else soft
    return ImageChops.lighter(soft, mask)


def _grown(levels: Pixels, by: int) -> Pixels:
    """Return for each pixel the largest level that is at most `by` rows and columns away."""
    for axis in (0, 1):
        reach, most = 0, min(by, levels.shape[axis] - 1)
        while reach < most:
            step = min(most - reach, 2 * reach + 1)
            levels = _largest(levels, step, axis)
            reach += step
    return levels


def _largest(levels: Pixels, step: int, axis: int) -> Pixels:
    """Return for each pixel the largest of its level and of the levels `step` pixels before and after it."""
    rows = levels if axis == 0 else levels.T
    largest = rows.copy()
    np.maximum(largest[step:], rows[:-step], out=largest[step:])
    np.maximum(largest[:-step], rows[step:], out=largest[:-step])
    return largest if axis == 0 else largest.T
