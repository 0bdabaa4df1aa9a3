"""What an uploaded PNG, JPEG or WebP file holds: the parts that make its picture, apart from what is said about it.

Pillow reads all that a file carries, and little of it is bounded: text that unpacks to hundreds of megabytes, EXIF
whose entries all point at the same bytes, chunks by the million. So it is given a file of the picture's own parts
alone; of the rest, what changes how the picture looks is read here: EXIF's orientation, the profile of the colours and
a PNG's transparent colour.
"""

import re
import struct
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple

from app.errors import InvalidImageError, UnsupportedImageError
from app.images.vp8l import check_codes

_PNG_MAGIC, _JPEG_MAGIC, _RIFF_MAGIC = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF"

_MAX_PARTS = 1 << 16
"""Chunks or segments that are looked at. A PNG of 32 MiB in chunks of 8 KiB, as libpng writes them, has 4096."""

_MAX_TABLE_BYTES = 1 << 18
"""What a JPEG may carry beside its scans: tables that are repeated cost time. Encoders write a few kilobytes."""

_MAX_PROFILE_BYTES = 1 << 20
"""A longer colour profile is overlooked. Those of displays and cameras have 500 bytes to 4 KB."""

_PIPELINE = b"mpet"
"""ICC's type of a tag of arbitrarily many steps: by 100,000 of them 1 MiB of profile costs LittleCMS minutes and
gigabytes. No display or camera has one, so a profile with one is overlooked."""

_MAX_EXIF_BYTES = 1 << 16
"""As much of EXIF data as is read: all that a JPEG can carry. The orientation stands near its begin."""

_EXIF_HEAD = b"Exif\0\0"
_ORIENTATION_TAG = 0x0112
_INTEGER_TYPES = {1: "B", 3: "H", 4: "I"}
"""TIFF's numbers of types, as struct's letters."""

_PNG_PARTS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_MAX_PALETTE_BYTES = 3 * 256
"""The longest palette that libpng takes. A longer one would allow a tRNS chunk of megabytes, which Pillow searches at
once."""

_GREY, _RGB, _PALETTE = 0, 2, 3
"""The colour types of a PNG that may have a tRNS chunk."""
_DEEP = 16
_LEVELS_BYTES: Mapping[tuple[int, ...], int] = {
    **{(depth, _GREY): 2 for depth in (1, 2, 4, 8, _DEEP)},
    **{(depth, _RGB): 6 for depth in (8, _DEEP)},
}
"""Length of tRNS where it names one transparent colour, by bits of a sample and colour type."""

_WEBP_PARTS = (b"VP8X", b"ALPH", b"VP8 ", b"VP8L")
_WEBP_ALPHA_FLAG = 0x10
_SIDE_MASK = (1 << 14) - 1
_ALPHA_METHOD, _ALPHA_LOSSLESS = 3, 1

_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
"""A marker that begins a segment or ends the file: no escaped 0xFF, none that stands alone, no fill byte."""
_SEARCHED_BYTES = 1 << 16  # at once; of 0xFF alone that takes a millisecond
_SOS, _EOI, _JFIF, _EXIF, _ICC, _ADOBE = b"\xda", b"\xd9", b"\xe0", b"\xe1", b"\xe2", b"\xee"
_JPEG_TABLES = frozenset({b"\xc4", b"\xcc", b"\xdb", b"\xdc", b"\xdd"})  # DHT, DAC, DQT, DNL, DRI
_JPEG_FRAMES = frozenset(bytes([marker]) for marker in range(0xC0, 0xD0)) - _JPEG_TABLES
_JPEG_PARTS = _JPEG_TABLES | _JPEG_FRAMES | {_SOS, _EOI}
_PROGRESSIVE = frozenset({b"\xc2", b"\xca"})
_ICC_HEAD = b"ICC_PROFILE\0"
_ICC_CONTENT = 14
"""Where a piece of a profile begins: after the head, its number and how many there are."""


class TransparentColor(NamedTuple):
    """The one colour of a PNG whose pixels are fully transparent."""

    levels: tuple[int, ...]
    """Of grey, or of red, green and blue."""
    bits: int
    """Of each level: 16, or 8, to which Pillow scales samples of fewer bits."""

    @property
    def is_deep_rgb(self) -> bool:
        """Whether it has three levels of 16 bits. Of such samples Pillow decodes only a byte each at a time."""
        return self.bits == _DEEP and len(self.levels) > 1


@dataclass(frozen=True, slots=True)
class Contents:
    """A file taken apart."""

    format: Literal["PNG", "JPEG", "WEBP"]
    picture: Sequence[bytes | memoryview]
    """A file with the picture and nothing else, in pieces of the upload: a copy would stop all other threads."""
    orientation: int = 1
    """EXIF's: 1 to 8, 1 is upright."""
    profile: bytes | None = None
    """The ICC profile of its colours."""
    transparent: TransparentColor | None = None
    """The colour that is laid on white; `picture` says nothing about it. Other transparency is in `picture`."""
    bytes_per_pixel: float = 4
    """Memory that its decoder and Pillow's picture hold together at their peak."""
    file_copies: int = 1
    """Copies of the file that are held meanwhile: the upload's, and what its decoder makes."""
    scans: int = 1
    """How often its decoder passes over the picture."""

    def memory_bytes(self, pixels: int) -> int:
        """Return how much memory it takes to decode a picture of so many pixels from this file."""
        return int(pixels * self.bytes_per_pixel) + sum(map(len, self.picture)) * self.file_copies


class _Part(NamedTuple):
    name: bytes
    content: memoryview
    whole: memoryview
    """With its length and what else frames it, as it stands in the file."""
    start: int = 0
    """Where in the file it begins."""


class _Kept:
    """The parts that make the picture, of which neighbours are one span of the file.

    By an object for each of 65,000 parts, a garbage collection would stop all other threads for 20 ms.
    """

    def __init__(self, data: bytes | memoryview) -> None:
        self._view = memoryview(data)
        self._starts, self._ends = array("Q"), array("Q")

    def add(self, part: _Part) -> None:
        """Keep a part that begins where the last one ends, or behind it."""
        end = part.start + len(part.whole)
        if self._ends and self._ends[-1] == part.start:
            self._ends[-1] = end
        else:
            self._starts.append(part.start)
            self._ends.append(end)

    def spans(self) -> Iterator[memoryview]:
        """Return what was kept, in its order."""
        return (self._view[start:end] for start, end in zip(self._starts, self._ends, strict=True))


def unpack(data: bytes | memoryview) -> Contents:
    """Take a file apart. What follows the picture's end is left out.

    Raises:
        UnsupportedImageError: The bytes are no PNG, JPEG or WebP.
        InvalidImageError: The picture is animated or damaged, or the file is of absurdly many parts.
    """
    head = bytes(data[:12])
    if head.startswith(_PNG_MAGIC):
        return _unpack_png(data)
    if head.startswith(_JPEG_MAGIC):
        return _unpack_jpeg(data)
    if head.startswith(_RIFF_MAGIC) and head[8:] == b"WEBP":
        return _unpack_webp(data)
    raise UnsupportedImageError("The file is no PNG, JPEG or WebP picture.", param="image")


def _unpack_png(data: bytes | memoryview) -> Contents:
    kept = _Kept(data)
    parts: dict[bytes, _Part] = {}
    for part in _bounded(_png_parts(data)):
        if part.name == b"fdAT":  # the pixels of a frame other than the first
            raise _animated()
        if part.name == b"PLTE" and len(part.content) > _MAX_PALETTE_BYTES:
            raise damaged()
        if part.name == b"tRNS" and not _is_valid_transparency(part, parts):
            continue
        names_color = part.name == b"tRNS" and _kind_of_pixel(parts) in _LEVELS_BYTES
        if part.name == b"IDAT" or (part.name in _PNG_PARTS and part.name not in parts and not names_color):
            kept.add(part)
        parts.setdefault(part.name, part)
    transparent = _transparent_color(parts)
    return Contents(
        "PNG",
        [_PNG_MAGIC, *kept.spans()],
        orientation=_orientation(parts.get(b"eXIf")),
        profile=_bounded_profile(_inflate_profile(parts[b"iCCP"].content) if b"iCCP" in parts else b""),
        transparent=transparent,
        # A mask of one bit is held as well, made from the low bytes of the samples before the high ones are decoded.
        bytes_per_pixel=4 + 1 / 8 if transparent and transparent.is_deep_rgb else 4,
    )


def _is_valid_transparency(chunk: _Part, parts: Mapping[bytes, _Part]) -> bool:
    """Return whether a tRNS chunk counts behind these parts, by libpng's rules; it ignores any other."""
    if b"IHDR" not in parts or b"IDAT" in parts:
        return False
    kind, length = _kind_of_pixel(parts), len(chunk.content)
    if kind[1:] == (_PALETTE,):
        return b"PLTE" in parts and 0 < length <= len(parts[b"PLTE"].content) // 3
    return length == _LEVELS_BYTES.get(kind)


def _transparent_color(parts: Mapping[bytes, _Part]) -> TransparentColor | None:
    """Return the colour that tRNS names. For a palette it names none, but how opaque each entry is.

    Of a level only as many bits count as a sample has (PNG specification, 11.3.2.1).
    """
    if b"tRNS" not in parts or _kind_of_pixel(parts) not in _LEVELS_BYTES:
        return None
    content, whole = parts[b"tRNS"].content, parts[b"tRNS"].whole
    if zlib.crc32(whole[4:-4]) != int.from_bytes(whole[-4:], "big"):  # Pillow checks those of the chunks it is given
        raise damaged()
    depth, _ = _kind_of_pixel(parts)
    highest = (1 << depth) - 1
    levels = tuple(level & highest for level in struct.unpack(f">{len(content) // 2}H", content))
    if depth == _DEEP:
        return TransparentColor(levels, _DEEP)
    return TransparentColor(tuple(level * 255 // highest for level in levels), 8)


def _kind_of_pixel(parts: Mapping[bytes, _Part]) -> tuple[int, ...]:
    """Return the bits of a sample and the colour type that IHDR names."""
    return tuple(parts[b"IHDR"].content[8:10])


def _png_parts(data: bytes | memoryview) -> Iterator[_Part]:
    view, start = memoryview(data), len(_PNG_MAGIC)
    while start + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        yield _Part(name, view[start + 8 : end - 4], view[start:end], start)
        if name == b"IEND":
            return
        start = end


def _inflate_profile(chunk: memoryview) -> bytes:
    """Return what an iCCP chunk holds behind its name, a zero and the compression method (always zero)."""
    deflated = bytes(chunk[:_MAX_PROFILE_BYTES]).partition(b"\0")[2][1:]
    try:
        return zlib.decompressobj().decompress(deflated, _MAX_PROFILE_BYTES + 1)
    except zlib.error:
        return b""


def _unpack_webp(data: bytes | memoryview) -> Contents:
    parts: dict[bytes, _Part] = {}
    for part in _bounded(_webp_parts(data)):
        if part.name == b"ANMF":
            raise _animated()
        parts.setdefault(part.name, part)
    _check_webp_codes(parts)
    kept: list[bytes | memoryview] = [parts[name].whole for name in _WEBP_PARTS if name in parts]
    if b"VP8X" in parts:  # its flags name chunks that are left out here
        flags = bytes(flag & _WEBP_ALPHA_FLAG for flag in kept[0][8:9])
        kept[:1] = [kept[0][:8], flags, kept[0][9:]]
    size = struct.pack("<I", 4 + sum(map(len, kept)))
    return Contents(
        "WEBP",
        [_RIFF_MAGIC, size, b"WEBP", *kept],
        orientation=_orientation(parts.get(b"EXIF")),
        profile=_bounded_profile(parts[b"ICCP"].content if b"ICCP" in parts else b""),
        # libwebp's decoder holds the canvas twice; Pillow copies it into bytes, and those into its picture.
        bytes_per_pixel=16,
        file_copies=3,
    )


def _check_webp_codes(parts: Mapping[bytes, _Part]) -> None:
    """Look into the lossless streams: the picture, behind its size, or the alpha of one that is not lossless itself."""
    if b"VP8L" in parts:
        content = parts[b"VP8L"].content
        sides = int.from_bytes(content[1:5], "little")
        check_codes(content[5:], (sides & _SIDE_MASK) + 1, (sides >> 14 & _SIDE_MASK) + 1)
    if b"ALPH" in parts and b"VP8X" in parts:
        content, canvas = parts[b"ALPH"].content, parts[b"VP8X"].content
        if content[:1] and content[0] & _ALPHA_METHOD == _ALPHA_LOSSLESS:
            width, height = (int.from_bytes(side, "little") + 1 for side in (canvas[4:7], canvas[7:10]))
            check_codes(content[1:], width, height)


def _webp_parts(data: bytes | memoryview) -> Iterator[_Part]:
    (size,) = struct.unpack_from("<I", data, 4)
    view, start = memoryview(data)[: 8 + size], 12
    while start + 8 <= len(view):
        name, length = struct.unpack_from("<4sI", view, start)
        end = start + 8 + length + length % 2
        yield _Part(name, view[start + 8 : start + 8 + length], view[start:end])
        start = end


def _unpack_jpeg(data: bytes | memoryview) -> Contents:
    kept = _Kept(data)
    parts: dict[bytes, _Part] = {}
    profile: dict[int, memoryview] = {}
    table_bytes, scans = 0, 0
    for part in _bounded(_jpeg_parts(data)):
        name, content = part.name, part.content
        if name == _EXIF and content[: len(_EXIF_HEAD)] != _EXIF_HEAD:  # XMP has the same marker
            continue
        if name == _ICC and content[: len(_ICC_HEAD)] == _ICC_HEAD and len(content) > _ICC_CONTENT:
            profile.setdefault(content[len(_ICC_HEAD)], content[_ICC_CONTENT:])
        if name in _JPEG_PARTS or (name in (_JFIF, _ADOBE) and name not in parts):
            kept.add(part)
            scans += name == _SOS
            table_bytes += len(part.whole) if name != _SOS else 0
        parts.setdefault(name, part)
    if table_bytes > _MAX_TABLE_BYTES:
        raise InvalidImageError(f"The JPEG has more than {_MAX_TABLE_BYTES} bytes of tables.", param="image")
    return Contents(
        "JPEG",
        [_JPEG_MAGIC[:2], *kept.spans()],
        orientation=_orientation(parts.get(_EXIF)),
        profile=_bounded_profile(b"".join(piece for _, piece in sorted(profile.items()))),
        bytes_per_pixel=4 + _coefficient_bytes(parts),
        scans=scans,
    )


def _jpeg_parts(data: bytes | memoryview) -> Iterator[_Part]:
    view = memoryview(data)
    found = _next_marker(view, 2)
    while found is not None:
        name, start = found[1], found.start()
        if name == _EOI:
            yield _Part(name, view[:0], view[start : start + 2], start)
            return
        end = start + 2 + int.from_bytes(view[start + 2 : start + 4], "big")
        found = _next_marker(view, end)
        if name == _SOS:  # with the entropy-coded data that follows it
            end = found.start() if found else len(data)
        yield _Part(name, view[start + 4 : end], view[start:end], start)


def _next_marker(view: memoryview, start: int) -> re.Match[bytes] | None:
    """Find it in a piece after another: a search holds the GIL, and a scan may be all of the file."""
    for at in range(start, len(view), _SEARCHED_BYTES):
        found = _JPEG_MARKER.search(view, at, at + _SEARCHED_BYTES + 1)  # and the second byte of one at the end
        if found is not None:
            return found
    return None


def _coefficient_bytes(parts: Mapping[bytes, _Part]) -> float:
    """Return how much memory a pixel's coefficients take, where libjpeg must hold all of the picture's.

    That is where a pass gives only a part of them: in a progressive JPEG, and where components come one by one.
    """
    frames = [parts[name].content for name in _JPEG_FRAMES if name in parts]
    if len(frames) != 1 or _SOS not in parts:  # libjpeg will refuse it
        return 0
    sampling = [(factors >> 4, factors & 15) for factors in frames[0][7::3]]
    per_block = max((h for h, _ in sampling), default=0) * max((v for _, v in sampling), default=0)
    in_one_pass = parts[_SOS].content[:1] == bytes([len(sampling)]) and not _PROGRESSIVE & parts.keys()
    return 0 if in_one_pass or not per_block else 2 * sum(h * v for h, v in sampling) / per_block


def _bounded(parts: Iterator[_Part]) -> Iterator[_Part]:
    yield from islice(parts, _MAX_PARTS)
    if next(parts, None) is not None:
        raise InvalidImageError(f"The file has more than {_MAX_PARTS} chunks or segments.", param="image")


def _bounded_profile(profile: bytes | memoryview) -> bytes | None:
    if not 0 < len(profile) <= _MAX_PROFILE_BYTES:
        return None
    whole = bytes(profile)
    return None if _PIPELINE in whole else whole


def _orientation(exif: _Part | None) -> int:
    """Return the orientation that EXIF data names; 1, upright, if it names none or is damaged."""
    tiff = b"" if exif is None else bytes(exif.content[:_MAX_EXIF_BYTES]).removeprefix(_EXIF_HEAD)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for start in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, start)
            if tag == _ORIENTATION_TAG and kind in _INTEGER_TYPES:
                (orientation,) = struct.unpack_from(order + _INTEGER_TYPES[kind], tiff, start + 8)
                return orientation if orientation in range(1, 9) else 1
    except struct.error:
        pass
    return 1


def damaged() -> InvalidImageError:
    """Return the error of a file whose picture cannot be decoded."""
    return InvalidImageError("The picture is truncated or damaged.", param="image")


def _animated() -> InvalidImageError:
    return InvalidImageError("The picture is animated; send a single frame.", param="image")
