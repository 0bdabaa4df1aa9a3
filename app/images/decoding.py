"""Decodes an uploaded file to an RGB picture of the size to generate at, within bounds of memory and time."""

import bisect
import io
import itertools
import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import BinaryIO, TypeVar, cast

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageChops, ImageCms, ImageFile, ImageOps, _imaging

from app.errors import ImageTooLargeError, InvalidImageError
from app.images.containers import Contents, damaged, unpack
from app.images.memory import reserve, waiting_array
from app.images.scaling import Rows, bands, covering_box, is_large, scale_rows
from app.images.sizes import Size, preferred_size
from app.pipelines.host_memory import return_freed_memory
from app.settings import Settings

_MAX_UPLOAD_SIDE = 65_535  # the longest side of a JPEG; Pillow allocates 8 bytes for each row before any pixel

_MAX_BYTES_PER_PIXEL = 9
"""Memory that decoding may take, for each pixel of the largest upload (or of a megapixel): 151 MB by default."""

_MAX_SCANS = 12
"""Scans that the largest upload may have; smaller uploads may have more in proportion. libjpeg writes 10."""

_MAX_READ_S = 3.0
"""Processor time that decoding may take. 16 megapixels of 16 bits and alpha take up to 0.7 s; of 16-bit RGB with a
transparent colour, which is decoded twice, 0.3 to 0.9 s, and more if they are mostly noise. Slow processors take more
than twice as long."""

_FIRST_TURNED = 5  # the first EXIF orientation in which the file's columns are the upright picture's rows
_LAST_ROW_FIRST = (3, 4, 7, 8)  # EXIF orientations in which the file has the upright picture's last row first
_OPAQUE = 255

_MUCH_MEMORY = 16 << 20  # bytes, of the file and for decoding it, from which freed memory is returned to the system


T = TypeVar("T")
Pixels = npt.NDArray[np.uint8]


def decode_image(data: bytes | memoryview, size: Size | None, settings: Settings) -> Image.Image:
    """Decode an uploaded file to an RGB picture of the size to generate at. Blocks; call it in a thread.

    The header is checked before anything is decoded. EXIF orientation and RGB colour profiles are applied, transparency
    is blended with white. The picture is scaled to cover the size and cropped about its centre.

    Without a size, the picture keeps its aspect, at most 32:1, at about 512x512 pixels and with sides that are
    multiples of 8.

    Raises:
        UnsupportedImageError: The bytes are not a PNG, JPEG or WebP picture.
        ImageTooLargeError: The header has more pixels than are allowed.
        InvalidImageError: The picture is animated, truncated or damaged, takes too long to decode, or has an aspect
            that cannot be kept.
    """

    def fit(picture: "_Picture") -> Image.Image:
        target = size or preferred_size(picture.upright, max_pixels=settings.max_pixels)
        fitted = _fit(picture.rgb_rows, picture.upright, target)
        return fitted if picture.contents.profile is None else _as_srgb(fitted, picture.contents.profile)

    return _decode(data, fit, settings)


def decode_whole(data: bytes | memoryview, settings: Settings, *, grey: bool = False) -> tuple[Pixels, Pixels | None]:
    """Decode an uploaded file at its own size. Blocks; call it in a thread.

    Returns:
        The upright picture, converted as by `decode_image`, of shape (height, width, 3), or if `grey` (height, width);
        and its opacity, of shape (height, width), or None if all of it is opaque.

    Raises:
        TurboError: As `decode_image`.
    """

    def whole(picture: "_Picture") -> tuple[Pixels, Pixels | None]:
        if grey:
            pixels = picture.join(lambda start, end: picture.rgb_rows(start, end).convert("L"))
        else:
            pixels = picture.join(picture.srgb_rows, 3)
        opacity = picture.join(picture.opacity_rows) if picture.has_opacity else None
        return pixels, None if opacity is None or opacity.min() == _OPAQUE else opacity

    return _decode(data, whole, settings)


def _decode(data: bytes | memoryview, use: "Callable[[_Picture], T]", settings: Settings) -> T:
    """Decode the picture, and return what `use` makes of it."""
    memory_bytes = math.inf  # if decoding fails
    try:
        contents = unpack(data)
        try:
            image = _open(contents)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _too_large(settings.max_upload_pixels) from error
        except Exception as error:  # as below
            raise damaged() from error
        stored = Size(*image.size)
        with closing(image):  # frees the pixels even while an error's traceback refers to the picture
            _check_cost(stored, contents, settings.max_upload_pixels)
            try:
                low_bytes_match = _match_low_bytes(contents)
                _load(image)
            except InvalidImageError:
                raise
            except Exception as error:  # for a damaged file, decoders raise struct.error, EOFError and others
                raise damaged() from error
            result = use(_Picture(image, contents, low_bytes_match))
        memory_bytes = contents.memory_bytes(stored.pixels)
        return result
    finally:  # the memory for decoding is freed by now
        if len(data) + memory_bytes > _MUCH_MEMORY:
            # Not after every picture: on a CPU, a pipeline's memory is returned too, which costs a tenth of its time.
            return_freed_memory()


def _open(contents: Contents) -> ImageFile.ImageFile:
    return Image.open(cast("BinaryIO", _TimedFile(contents.picture)), formats=(contents.format,))


def _load(image: Image.Image) -> None:
    """Decode into reserved memory, because Pillow would clear its own at once while it holds the GIL."""
    pixel_bytes = 1 if image.mode in ("L", "P") else 2 if image.mode.startswith("I;16") else 4  # as map_buffer has it
    memory = reserve(pixel_bytes * image.width * image.height)
    image.im = _imaging.map_buffer(memory, image.size, "raw", 0, (image.mode, 0, 1))
    image.load()


class _TimedFile:
    """The part of a file's interface that Pillow needs, for a file in pieces. Reading fails after too much time.

    A small file can cost minutes. The time is this thread's processor time, so other load does not make a picture fail.
    """

    def __init__(self, pieces: Sequence[bytes | memoryview]) -> None:
        self._pieces = pieces
        self._ends = list(itertools.accumulate(map(len, pieces)))
        self._at = 0
        self._end = time.thread_time() + _MAX_READ_S

    def read(self, size: int = -1) -> bytes:
        if time.thread_time() > self._end:
            raise InvalidImageError("The picture takes too long to decode.", param="image")
        end = self._ends[-1] if size < 0 else min(self._at + size, self._ends[-1])
        found: list[bytes | memoryview] = []
        number = bisect.bisect_right(self._ends, self._at)
        while self._at < end:
            start = self._ends[number] - len(self._pieces[number])
            piece = self._pieces[number][self._at - start : end - start]
            found.append(piece)
            self._at += len(piece)
            number += 1
        return b"".join(found)

    def seek(self, offset: int) -> int:
        self._at = min(offset, self._ends[-1])
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        self._pieces, self._ends, self._at = (), [0], 0


def _check_cost(size: Size, contents: Contents, max_upload_pixels: int) -> None:
    """Reject a picture that by its header would take too much memory or time."""
    if size.pixels > max_upload_pixels:
        raise _too_large(max_upload_pixels)
    if contents.memory_bytes(size.pixels) > _MAX_BYTES_PER_PIXEL * max(max_upload_pixels, 1 << 20):
        raise ImageTooLargeError(
            "Decoding the picture would take too much memory: WebP and progressive JPEG take several times the memory "
            "of other pictures with as many pixels.",
            param="image",
        )
    if max(size.width, size.height) > _MAX_UPLOAD_SIDE:
        raise ImageTooLargeError(f"The picture has a side of more than {_MAX_UPLOAD_SIDE} pixels.", param="image")
    if contents.scans * size.pixels > _MAX_SCANS * max_upload_pixels:
        raise InvalidImageError(f"The JPEG has too many scans for its size: {contents.scans}.", param="image")


def _too_large(max_upload_pixels: int) -> ImageTooLargeError:
    return ImageTooLargeError(f"The picture has more than {max_upload_pixels} pixels.", param="image")


def _match_low_bytes(contents: Contents) -> Image.Image | None:
    """Return a mask of the pixels of 16-bit RGB whose low bytes are those of the transparent colour, if there is one.

    Pillow's picture has room for the high bytes only, so the file is decoded once more.
    """
    if contents.transparent is None or not contents.transparent.low_bytes:
        return None
    with closing(_open(contents)) as low_bytes:
        # Read as little-endian: Pillow keeps the second byte of a sample, which here is the low byte.
        low_bytes.tile = [tile._replace(args="RGB;16L") for tile in low_bytes.tile]
        _load(low_bytes)
        width, height = low_bytes.size
        mask = Image.new("1", low_bytes.size, None)
        for start, end in bands(width, 0, height):
            rows = low_bytes.crop((0, start, width, end))
            mask.paste(_match(rows, contents.transparent.low_bytes), (0, start))
        return mask


def _match(image: Image.Image, levels: Sequence[int]) -> Image.Image:
    """Return a mask of the pixels with these levels, one for each channel."""
    channels = (image.convert("L") if image.mode == "1" else image).split()
    matches = [np.asarray(channel) == level for channel, level in zip(channels, levels, strict=True)]
    return Image.fromarray(np.logical_and.reduce(matches))


def _fit(rows: Rows, upright: Size, target: Size) -> Image.Image:
    """Make the upright RGB picture of the target's size: scaled to cover it, cropped about its centre."""
    if is_large(upright):
        return scale_rows(rows, upright, covering_box(upright, target), target)
    whole = Image.new("RGB", (upright.width, upright.height), None)
    for start, end in bands(upright.width, 0, upright.height):
        whole.paste(rows(start, end), (0, start))
    return ImageOps.fit(whole, (target.width, target.height), Image.Resampling.LANCZOS)


@dataclass(frozen=True, slots=True)
class _Picture:
    """A decoded file, of which upright rows are converted as they are needed.

    `low_bytes_match` is the mask of `_match_low_bytes`.
    """

    image: Image.Image
    contents: Contents
    low_bytes_match: Image.Image | None

    @property
    def upright(self) -> Size:
        return _upright_size(Size(*self.image.size), self.contents)

    @property
    def has_opacity(self) -> bool:
        return self.contents.transparent is not None or self.image.has_transparency_data

    def join(self, rows: Rows, *channels: int) -> Pixels:
        """Return the whole upright picture, converted in bands of rows; `channels` is 3 for RGB."""
        size = self.upright
        whole = waiting_array((size.height, size.width, *channels))
        for start, end in bands(size.width, 0, size.height):
            whole[start:end] = np.asarray(rows(start, end))
        return whole

    def rgb_rows(self, start: int, end: int) -> Image.Image:
        """Return rows of the upright picture from `start` to before `end`, as RGB blended with white."""
        rows = self._rows(start, end)
        rgb = _as_rgb(rows)
        if self.contents.transparent is not None:
            rgb.paste("white", (0, 0), self._clear(rows, start, end))
        return rgb

    def srgb_rows(self, start: int, end: int) -> Image.Image:
        """Return these rows in sRGB."""
        rows = self.rgb_rows(start, end)
        return rows if self.contents.profile is None else _as_srgb(rows, self.contents.profile)

    def opacity_rows(self, start: int, end: int) -> Image.Image:
        """Return the opacity of these rows, in mode L."""
        rows = self._rows(start, end)
        if rows.has_transparency_data:
            opacity = rows.convert("RGBA").getchannel("A")
        else:
            opacity = Image.new("L", rows.size, _OPAQUE)
        if self.contents.transparent is not None:
            opacity.paste(0, (0, 0), self._clear(rows, start, end))
        return opacity

    def _rows(self, start: int, end: int) -> Image.Image:
        return _upright_rows(self.image, self.contents.orientation, start, end)

    def _clear(self, rows: Image.Image, start: int, end: int) -> Image.Image:
        """Return a mask of the pixels of these rows that have the transparent colour."""
        assert self.contents.transparent is not None  # noqa: S101 - the callers have checked
        clear = _match(rows, self.contents.transparent.levels)
        if self.low_bytes_match is None:
            return clear
        low_bytes = _upright_rows(self.low_bytes_match, self.contents.orientation, start, end)
        return ImageChops.logical_and(clear, low_bytes)


def _upright_size(stored: Size, contents: Contents) -> Size:
    return stored if contents.orientation < _FIRST_TURNED else Size(stored.height, stored.width)


def _upright_rows(image: Image.Image, orientation: int, start: int, end: int) -> Image.Image:
    """Return some rows of the upright picture; only these are turned."""
    width, height = image.size
    mirrored = orientation in _LAST_ROW_FIRST
    if orientation < _FIRST_TURNED:
        box = (0, height - end, width, height - start) if mirrored else (0, start, width, end)
    else:
        box = (width - end, 0, width - start, height) if mirrored else (start, 0, end, height)
    rows = image.crop(box)
    rows.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(rows)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips instead of scaling
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _as_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert the colours to sRGB, which the model was trained on. A profile that cannot be used is ignored."""
    try:
        embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if embedded.profile.xcolor_space.strip() != "RGB":  # grey or ink, which Pillow has already converted to RGB
            return image
        if ImageCms.getProfileDescription(embedded).startswith("sRGB"):  # the conversion could round pixels
            return image
        return ImageCms.profileToProfile(image, embedded, ImageCms.createProfile("sRGB")) or image
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
