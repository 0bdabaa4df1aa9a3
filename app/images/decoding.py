"""Pictures in and out: bytes to a checked RGB image, and pixels to PNG, WebP or JPEG."""

import bisect
import ctypes
import io
import itertools
import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import reduce
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageCms, ImageFile, ImageOps, _imaging

from app.errors import ImageTooLargeError, InvalidImageError
from app.images.containers import Contents, TransparentColor, damaged, unpack
from app.images.memory import reserve
from app.images.sizes import Size, preferred_size

_MAX_UPLOAD_SIDE = 65_535
"""The longest side of a JPEG; Pillow spends 8 bytes on each row before any pixel."""

_MAX_BYTES_PER_PIXEL = 9
"""Memory that decoding may take, for each pixel of the largest upload (or of a megapixel): 151 MB by default."""

_MAX_SCANS = 12
"""Scans that the largest upload may have; smaller ones as many more. libjpeg's own progressive JPEGs have 10."""

_MAX_READ_S = 1.0
"""Processor time that decoding may take. 16 megapixels of 16 bits and alpha take up to 0.7 s. 16-bit RGB with a
transparent colour is decoded twice: as many pixels take 0.3 to 0.9 s, and more if they are mostly noise."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by EXIF orientation; from 5 on its columns are the upright picture's rows."""

_FIRST_TURNED = 5
_LAST_ROW_FIRST = (3, 4, 7, 8)
"""Orientations whose upright rows are stored last row, or column, first."""

_WHOLE_PIXELS = 1 << 22
"""Pixels of a picture that is scaled as a whole."""

_BAND_PIXELS = 1 << 20
"""Pixels that are converted at once, in up to five copies. Pillow lays 4 megapixels on white in 25 ms, and holds the
GIL meanwhile."""

_LANCZOS_SUPPORT = 3

_MUCH_MEMORY = 16 << 20
"""Bytes, of the file and for decoding it, that are worth returning to the system."""


_HIGH_BYTE = [value >> 8 for value in range(1 << 16)]
"""Lookup table from 16-bit to 8-bit grey."""


def decode_image(
    data: bytes | memoryview, *, size: Size | None, max_upload_pixels: int, max_pixels: int
) -> Image.Image:
    """Turn an uploaded file into an RGB picture of the size to generate at. Blocks; call it in a thread.

    The header is looked at before anything is decoded. EXIF orientation and RGB colour profiles are honoured,
    transparency is laid on white. The picture is scaled to cover the size and cropped about its centre.

    Args:
        data: The file's bytes.
        size: The output's size; without one, the picture's aspect at about 512x512 pixels, sides multiples of 8.
            An aspect beyond 32:1 needs one.
        max_upload_pixels: Pixels that the upload may have; fewer where its decoder takes more memory than most.
        max_pixels: Pixels that the output may have.

    Raises:
        UnsupportedImageError: The bytes are no PNG, JPEG or WebP.
        ImageTooLargeError: The header names more pixels than are allowed.
        InvalidImageError: The picture is animated, truncated or damaged, takes too long to decode, or has an aspect
            that cannot be kept.
    """
    memory_bytes = math.inf  # of one that fails
    try:
        image, memory_bytes = _decode(unpack(data), size, max_upload_pixels=max_upload_pixels, max_pixels=max_pixels)
        return image
    finally:  # when all that was needed for it is gone
        if len(data) + memory_bytes > _MUCH_MEMORY:
            _return_memory()


def _decode(
    contents: Contents, size: Size | None, *, max_upload_pixels: int, max_pixels: int
) -> tuple[Image.Image, float]:
    """Decode the picture, and say how much memory that took."""
    try:
        image = _open(contents)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(max_upload_pixels) from error
    except Exception as error:  # as below
        raise damaged() from error
    stored = Size(*image.size)
    upright = stored if contents.orientation < _FIRST_TURNED else Size(stored.height, stored.width)
    with closing(image):  # which frees the pixels even while an error's traceback holds on to the picture
        _check_cost(stored, contents, max_upload_pixels)
        target = size or preferred_size(upright, max_pixels=max_pixels)
        try:
            low_bytes_match = _match_low_bytes(contents)
            _load(image)
        except InvalidImageError:
            raise
        except Exception as error:  # whatever a damaged file makes a decoder raise: struct.error, EOFError, ...
            raise damaged() from error
        fitted = _fit(_Decoded(image, contents.orientation, contents.transparent, low_bytes_match), upright, target)
    if contents.profile is not None:
        fitted = _as_srgb(fitted, contents.profile)
    return fitted, contents.memory_bytes(stored.pixels)


def _open(contents: Contents) -> ImageFile.ImageFile:
    """Read the picture's header."""
    return Image.open(cast("BinaryIO", _TimedFile(contents.picture)), formats=(contents.format,))


def _load(image: Image.Image) -> None:
    """Decode into memory of our own; Pillow clears its own at once, and no other thread runs meanwhile."""
    pixel_bytes = 1 if image.mode in ("L", "P") else 2 if image.mode.startswith("I;16") else 4  # as map_buffer has it
    memory = reserve(pixel_bytes * image.width * image.height)
    image.im = _imaging.map_buffer(memory, image.size, "raw", 0, (image.mode, 0, 1))
    image.load()


def _return_memory() -> None:
    """Have glibc return freed memory to the system; it would keep tens of megabytes for each thread that decodes.

    Not after every picture: it returns also what the pipeline on a CPU is about to use again, a tenth of its time.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


class _TimedFile:
    """A file in pieces, as far as Pillow needs one. It fails when this thread has worked on it for too long.

    A small file can cost minutes. The time is the processor's, so that nobody's picture fails because others keep the
    machine busy.
    """

    def __init__(self, pieces: Sequence[bytes | memoryview]) -> None:
        self._pieces = pieces
        self._ends = list(itertools.accumulate(map(len, pieces)))
        self._at = 0
        self._end = time.thread_time() + _MAX_READ_S

    def read(self, size: int = -1) -> bytes:
        """Read as a file does; decoders ask for 64 KiB at a time."""
        if time.thread_time() > self._end:
            raise InvalidImageError("The picture takes too long to decode.", param="image")
        left = self._ends[-1] - self._at
        left = left if size < 0 else min(size, left)
        found: list[bytes | memoryview] = []
        number = bisect.bisect_right(self._ends, self._at)
        while left > 0:
            whole = self._pieces[number]
            start = self._at - (self._ends[number] - len(whole))
            piece = whole[start : start + left]
            found.append(piece)
            left -= len(piece)
            self._at += len(piece)
            number += 1
        return b"".join(found)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to another place, as in a file."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._ends[-1]}[whence]
        self._at = min(max(0, base + offset), self._ends[-1])
        return self._at

    def tell(self) -> int:
        """Return the place, as of a file."""
        return self._at

    def close(self) -> None:
        """Let go of the pieces."""
        self._pieces, self._ends, self._at = (), [0], 0


def _check_cost(size: Size, contents: Contents, max_upload_pixels: int) -> None:
    """Refuse what would take too much memory or time, as its header tells."""
    if size.pixels > max_upload_pixels:
        raise _too_large(max_upload_pixels)
    if contents.memory_bytes(size.pixels) > _MAX_BYTES_PER_PIXEL * max(max_upload_pixels, 1 << 20):
        raise ImageTooLargeError(
            "Reading the picture would take too much memory: WebP and progressive JPEG take several times what other "
            "pictures of so many pixels do.",
            param="image",
        )
    if max(size.width, size.height) > _MAX_UPLOAD_SIDE:
        raise ImageTooLargeError(f"The picture has a side of more than {_MAX_UPLOAD_SIDE} pixels.", param="image")
    if contents.scans * size.pixels > _MAX_SCANS * max_upload_pixels:
        raise InvalidImageError(f"The JPEG has too many scans for its size: {contents.scans}.", param="image")


def _too_large(max_upload_pixels: int) -> ImageTooLargeError:
    return ImageTooLargeError(f"The picture has more than {max_upload_pixels} pixels.", param="image")


@dataclass(frozen=True, slots=True)
class _Mask:
    """A mask of a large picture, in an eighth of the memory that Pillow's would take."""

    size: tuple[int, int]
    rows: npt.NDArray[np.uint8]
    """Eight pixels in a byte, the first in its highest bit; each row begins with a byte."""

    def crop(self, box: tuple[int, int, int, int]) -> Image.Image:
        """Return a part as a picture of mode 1."""
        left, top, right, bottom = box
        first = left // 8
        part = self.rows[top:bottom, first : -(-right // 8)]
        whole_bytes = Image.frombytes("1", (8 * part.shape[1], part.shape[0]), part.tobytes())
        return whole_bytes.crop((left - 8 * first, 0, right - 8 * first, part.shape[0]))


def _match_low_bytes(contents: Contents) -> _Mask | None:
    """Compare the low bytes of 16-bit RGB, if it has a transparent colour, with those of that colour.

    The file is decoded once more for it, because Pillow's picture has room for the high bytes only.

    Returns:
        A mask of the pixels whose low bytes are the colour's.
    """
    if contents.transparent is None or not contents.transparent.is_deep_rgb:
        return None
    low_bytes = _open(contents)
    with closing(low_bytes):
        # As if the samples were little-endian: of those, Pillow keeps the second byte, which here is the low one.
        low_bytes.tile = [tile._replace(args="RGB;16L") for tile in low_bytes.tile]
        _load(low_bytes)
        width, height = low_bytes.size
        levels = [level & 0xFF for level in contents.transparent.levels]
        rows = max(1, _BAND_PIXELS // width)
        bands = (
            _match(low_bytes.crop((0, start, width, min(start + rows, height))), levels)
            for start in range(0, height, rows)
        )
        packed = np.frombuffer(b"".join(band.tobytes() for band in bands), np.uint8)
        return _Mask((width, height), packed.reshape(height, -1))


def _match_transparent(image: Image.Image, color: TransparentColor) -> Image.Image:
    """Return a mask of the pixels of this colour; of 16-bit RGB, of those with its high bytes."""
    if image.mode.startswith("I"):  # 16-bit grey
        return _match(image.convert("I").point([value == color.levels[0] for value in range(1 << 16)], "L"), [1])
    high_bytes = [level >> color.bits - 8 for level in color.levels]
    return _match(image.convert("L") if image.mode == "1" else image, high_bytes)


def _match(image: Image.Image, levels: Sequence[int]) -> Image.Image:
    """Return a mask of the pixels that have these levels, one for each of their 8-bit channels."""
    matches = (
        channel.point([255 * (value == level) for value in range(256)], "1")
        for channel, level in zip(image.split(), levels, strict=True)
    )
    return reduce(ImageChops.logical_and, matches)


@dataclass(frozen=True, slots=True)
class _Decoded:
    """A picture's pixels as they stand in the file."""

    image: Image.Image
    orientation: int
    transparent: TransparentColor | None
    low_bytes_match: _Mask | None
    """The mask of the pixels whose low bytes, which the image lacks, are those of the transparent colour."""

    def upright_rows(self, start: int, end: int) -> Image.Image:
        """Return some rows of the picture turned upright, as RGB on white."""
        rows = _upright_rows(self.image, self.orientation, start, end)
        rgb = _as_rgb(rows)
        if self.transparent is not None:
            clear = _match_transparent(rows, self.transparent)
            if self.low_bytes_match is not None:
                low_bytes_match = _upright_rows(self.low_bytes_match, self.orientation, start, end)
                clear = ImageChops.logical_and(clear, low_bytes_match)
            rgb.paste("white", (0, 0), clear)
        return rgb


def _fit(picture: _Decoded, upright: Size, target: Size) -> Image.Image:
    """Turn the picture upright and make it RGB and of the target's size: scaled to cover it, cropped about its centre.

    Bands of its rows are converted one after another. A large picture is never held twice: each band is scaled across
    before the next is converted, and what they leave is scaled down. That is how Pillow scales, so the pixels are the
    same, or rounded in another order.
    """
    rows = max(1, _BAND_PIXELS // upright.width)
    if upright.pixels <= _WHOLE_PIXELS:
        whole = Image.new("RGB", (upright.width, upright.height), None)
        for start in range(0, upright.height, rows):
            whole.paste(picture.upright_rows(start, min(start + rows, upright.height)), (0, start))
        return ImageOps.fit(whole, (target.width, target.height), Image.Resampling.LANCZOS)
    scale = min(upright.width / target.width, upright.height / target.height)
    left = max(0.0, (upright.width - target.width * scale) / 2)
    top = max(0.0, (upright.height - target.height * scale) / 2)
    right, bottom = upright.width - left, upright.height - top
    reach = _LANCZOS_SUPPORT * max(1.0, scale)
    first, last = max(0, int(top - reach)), min(upright.height, math.ceil(bottom + reach))
    across = Image.new("RGB", (target.width, last - first))
    for start in range(first, last, rows):
        band = picture.upright_rows(start, min(start + rows, last))
        box = (left, 0, right, band.height)
        across.paste(band.resize((target.width, band.height), Image.Resampling.LANCZOS, box), (0, start - first))
    within = (0, top - first, target.width, bottom - first)
    return across.resize((target.width, target.height), Image.Resampling.LANCZOS, within)


def _upright_rows(image: Image.Image | _Mask, orientation: int, start: int, end: int) -> Image.Image:
    """Return some rows of the picture turned upright, by turning only them."""
    width, height = image.size
    mirrored = orientation in _LAST_ROW_FIRST
    if orientation < _FIRST_TURNED:
        box = (0, height - end, width, height - start) if mirrored else (0, start, width, end)
    else:
        box = (width - end, 0, width - start, height) if mirrored else (start, 0, end, height)
    rows = image.crop(box)
    return rows if orientation == 1 else rows.transpose(_TURNS[orientation])


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips instead of scaling
        return image.convert("I").point(_HIGH_BYTE, "L").convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _as_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert the colours to sRGB, which the model was trained on. A profile that cannot be used is overlooked."""
    try:
        embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if embedded.profile.xcolor_space.strip() != "RGB":  # of greys or inks, which Pillow has made RGB already
            return image
        return ImageCms.profileToProfile(image, embedded, ImageCms.createProfile("sRGB")) or image
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
