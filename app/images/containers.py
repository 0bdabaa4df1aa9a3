"""Takes an uploaded PNG, JPEG or WebP file apart into the parts that make its picture, and its metadata.

Pillow reads everything in a file, mostly without bounds: text that unpacks to hundreds of megabytes, EXIF entries that
all point at the same bytes, millions of chunks. So Pillow gets only the picture, and the metadata is read here.
"""

import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple

from app.errors import InvalidImageError, UnsupportedImageError
from app.images.vp8l import check_codes

_PNG_MAGIC, _JPEG_MAGIC, _RIFF_MAGIC = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF"

_MAX_PARTS = 1 << 16
"""Chunks or segments of a file. A PNG of 32 MiB in chunks of 8 KiB, as libpng writes them, has 4096."""

_MAX_TABLE_BYTES = 1 << 18  # of a JPEG: repeated tables cost time, and encoders write a few kilobytes

_MAX_PROFILE_BYTES = 1 << 20
"""A longer colour profile is ignored. Profiles of displays and cameras have 500 bytes to 4 KB."""

_PIPELINE = b"mpet"
"""ICC's type of a tag with any number of steps: 100,000 steps, 1 MiB of profile, cost LittleCMS minutes and gigabytes.
Profiles of displays and cameras have no such tag, so a profile with one is ignored."""

_MAX_EXIF_BYTES = 1 << 16
"""The part of the EXIF data that is read: as much as a JPEG segment can hold. The orientation is near the beginning."""

_EXIF_HEAD = b"Exif\0\0"
_ORIENTATION_TAG = 0x0112
_INTEGER_TYPES = {1: "B", 3: "H", 4: "I"}  # numbers of TIFF's types, with struct's letters

_PNG_PARTS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_MAX_PALETTE_BYTES = 3 * 256
"""The longest palette that libpng accepts. A longer palette would allow a tRNS chunk of megabytes, in which Pillow
searches while it holds the GIL."""

_GREY, _RGB, _PALETTE = 0, 2, 3
"""The colour types of a PNG that may have a tRNS chunk."""
_DEEP = 16
_LEVELS_BYTES: Mapping[tuple[int, ...], int] = {
    **{(depth, _GREY): 2 for depth in (1, 2, 4, 8, _DEEP)},
    **{(depth, _RGB): 6 for depth in (8, _DEEP)},
}
"""Length of a tRNS chunk that names one transparent colour, by bits of a sample and colour type."""

_WEBP_PARTS = (b"VP8X", b"ALPH", b"VP8 ", b"VP8L")
_WEBP_ALPHA_FLAG = 0x10
_SIDE_MASK = (1 << 14) - 1
_ALPHA_METHOD, _ALPHA_LOSSLESS = 3, 1

_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
"""A marker that begins a segment or ends the file; not an escaped 0xFF, a marker without content or a fill byte."""
_SEARCHED_BYTES = 1 << 16  # in one call; if all are 0xFF, it takes a millisecond
_SOS, _EOI, _JFIF, _EXIF, _ICC, _ADOBE = b"\xda", b"\xd9", b"\xe0", b"\xe1", b"\xe2", b"\xee"
_JPEG_TABLES = frozenset({b"\xc4", b"\xcc", b"\xdb", b"\xdc", b"\xdd"})  # DHT, DAC, DQT, DNL, DRI
_JPEG_FRAMES = frozenset(bytes([marker]) for marker in range(0xC0, 0xD0)) - _JPEG_TABLES
_JPEG_PARTS = _JPEG_TABLES | _JPEG_FRAMES | {_SOS, _EOI}
_PROGRESSIVE = frozenset({b"\xc2", b"\xca"})
_ICC_HEAD = b"ICC_PROFILE\0"
_ICC_CONTENT = 14  # where a piece of a profile begins: after the head, the piece's number and the number of pieces


class TransparentColor(NamedTuple):
    """A PNG's colour whose pixels are fully transparent, in samples as Pillow decodes them."""

    levels: tuple[int, ...]  # one of grey, or three of red, green and blue
    low_bytes: tuple[int, ...] = ()  # of 16-bit RGB: Pillow decodes one of a sample's two bytes, the high one


@dataclass(frozen=True, slots=True)
class Contents:
    """The parts of a file."""

    format: Literal["PNG", "JPEG", "WEBP"]
    picture: Sequence[bytes | memoryview]
    """A file with the picture only, in pieces of the upload. A copy would hold the GIL while it is made."""
    orientation: int = 1  # EXIF's: 1 to 8; 1 is upright
    profile: bytes | None = None  # the ICC profile of the colours
    transparent: TransparentColor | None = None
    """The colour to blend with white, which `picture` does not contain. `picture` contains all other transparency."""
    bytes_per_pixel: float = 4  # peak memory of the decoder and of Pillow's picture together
    file_copies: int = 1  # copies of the file in memory while it is decoded: the upload and the decoder's copies
    scans: int = 1  # passes of the decoder over the picture

    def memory_bytes(self, pixels: int) -> int:
        """Return the memory that decoding takes if the picture has this many pixels."""
        return int(pixels * self.bytes_per_pixel) + sum(map(len, self.picture)) * self.file_copies


class _Part(NamedTuple):
    """A chunk or segment. `start` and `end` are its place in the file, with its name and length."""

    name: bytes
    start: int
    end: int
    content: memoryview


def unpack(data: bytes | memoryview) -> Contents:
    """Take a file apart. Bytes behind the picture's end are left out.

    Raises:
        UnsupportedImageError: The bytes are not a PNG, JPEG or WebP picture.
        InvalidImageError: The picture is animated or damaged, or the file has too many parts.
    """
    view, head = memoryview(data), bytes(data[:12])
    if head.startswith(_PNG_MAGIC):
        return _unpack_png(view)
    if head.startswith(_JPEG_MAGIC):
        return _unpack_jpeg(view)
    if head.startswith(_RIFF_MAGIC) and head[8:] == b"WEBP":
        return _unpack_webp(view)
    raise UnsupportedImageError("The file is not a PNG, JPEG or WebP picture.", param="image")


def _unpack_png(view: memoryview) -> Contents:
    if bytes(view[12:16]) != b"IHDR":
        raise damaged()
    kind = tuple(view[24:26])  # bits of a sample and colour type
    spans: list[tuple[int, int]] = []
    parts: dict[bytes, _Part] = {}
    for part in _bounded(_png_parts(view)):
        if part.name == b"fdAT":  # the pixels of a second frame
            raise _animated()
        if part.name == b"PLTE" and len(part.content) > _MAX_PALETTE_BYTES:
            raise damaged()
        if part.name == b"tRNS" and not _is_valid_transparency(part, kind, parts):
            continue
        names_color = part.name == b"tRNS" and kind in _LEVELS_BYTES
        if part.name == b"IDAT" or (part.name in _PNG_PARTS and part.name not in parts and not names_color):
            _keep(spans, part)
        parts.setdefault(part.name, part)
    transparent = None
    if b"tRNS" in parts and kind in _LEVELS_BYTES:
        transparent = _transparent_color(view, parts[b"tRNS"], *kind)
    return Contents(
        "PNG",
        [_PNG_MAGIC, *(view[start:end] for start, end in spans)],
        orientation=_orientation(parts.get(b"eXIf")),
        profile=_bounded_profile(_inflate_profile(parts[b"iCCP"].content) if b"iCCP" in parts else b""),
        transparent=transparent,
        bytes_per_pixel=5 if transparent and transparent.low_bytes else 4,  # with a mask of a byte for each pixel
    )


def text_parts(data: bytes | memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yield name and content of each text chunk of a PNG (tEXt, iTXt).

    Raises:
        UnsupportedImageError: The bytes are not a PNG.
        InvalidImageError: The file has too many parts.
    """
    view = memoryview(data)
    if not bytes(view[:8]).startswith(_PNG_MAGIC):
        raise UnsupportedImageError("The file is not a PNG picture.", param="image")
    for part in _bounded(_png_parts(view)):
        if part.name in (b"tEXt", b"iTXt"):
            yield part.name, part.content


def _is_valid_transparency(chunk: _Part, kind: tuple[int, ...], parts: Mapping[bytes, _Part]) -> bool:
    """Return whether a tRNS chunk behind these parts counts. libpng ignores all others."""
    if b"IDAT" in parts:
        return False
    length = len(chunk.content)
    if kind[1:] == (_PALETTE,):
        return b"PLTE" in parts and 0 < length <= len(parts[b"PLTE"].content) // 3
    return length == _LEVELS_BYTES.get(kind)


def _transparent_color(view: memoryview, chunk: _Part, depth: int, color_type: int) -> TransparentColor:
    content = chunk.content
    # Pillow does not see this chunk, so its checksum is checked here.
    if zlib.crc32(content, zlib.crc32(b"tRNS")) != int.from_bytes(view[chunk.end - 4 : chunk.end], "big"):
        raise damaged()
    highest = (1 << depth) - 1  # of a level, only as many low bits count as a sample has (specification, 11.3.2.1)
    levels = tuple(level & highest for level in struct.unpack(f">{len(content) // 2}H", content))
    if depth < _DEEP:
        return TransparentColor(tuple(level * 255 // highest for level in levels))
    if color_type == _GREY:
        return TransparentColor(levels)
    return TransparentColor(tuple(level >> 8 for level in levels), tuple(level & 0xFF for level in levels))


def _png_parts(view: memoryview) -> Iterator[_Part]:
    start = len(_PNG_MAGIC)
    while start + 8 <= len(view):
        length, name = struct.unpack_from(">I4s", view, start)
        end = start + 12 + length
        yield _Part(name, start, end, view[start + 8 : end - 4])
        if name == b"IEND":
            return
        start = end


def _inflate_profile(chunk: memoryview) -> bytes:
    """Return the profile in an iCCP chunk, behind its name, a zero and the compression method (always zero)."""
    deflated = bytes(chunk[:_MAX_PROFILE_BYTES]).partition(b"\0")[2][1:]
    try:
        return zlib.decompressobj().decompress(deflated, _MAX_PROFILE_BYTES + 1)
    except zlib.error:
        return b""


def _unpack_webp(view: memoryview) -> Contents:
    parts: dict[bytes, _Part] = {}
    for part in _bounded(_webp_parts(view)):
        if part.name == b"ANMF":
            raise _animated()
        parts.setdefault(part.name, part)
    _check_webp_codes(parts)
    chosen = [parts[name] for name in _WEBP_PARTS if name in parts]
    kept: list[bytes | memoryview] = [view[part.start : part.end] for part in chosen]
    if b"VP8X" in parts:  # clear the flags of chunks that are left out
        flags = bytes(flag & _WEBP_ALPHA_FLAG for flag in kept[0][8:9])
        kept[:1] = [kept[0][:8], flags, kept[0][9:]]
    size = struct.pack("<I", 4 + sum(map(len, kept)))
    return Contents(
        "WEBP",
        [_RIFF_MAGIC, size, b"WEBP", *kept],
        orientation=_orientation(parts.get(b"EXIF")),
        profile=_bounded_profile(parts[b"ICCP"].content if b"ICCP" in parts else b""),
        # libwebp's decoder holds the canvas twice. Pillow copies the canvas into bytes, and these into its picture.
        bytes_per_pixel=16,
        file_copies=3,
    )


def _check_webp_codes(parts: Mapping[bytes, _Part]) -> None:
    """Check the lossless streams: the picture's (behind its size) and that of a lossy picture's alpha."""
    if b"VP8L" in parts:
        content = parts[b"VP8L"].content
        sides = int.from_bytes(content[1:5], "little")
        check_codes(content[5:], (sides & _SIDE_MASK) + 1, (sides >> 14 & _SIDE_MASK) + 1)
    if b"ALPH" in parts and b"VP8X" in parts:
        content, canvas = parts[b"ALPH"].content, parts[b"VP8X"].content
        if content[:1] and content[0] & _ALPHA_METHOD == _ALPHA_LOSSLESS:
            width, height = (int.from_bytes(side, "little") + 1 for side in (canvas[4:7], canvas[7:10]))
            check_codes(content[1:], width, height)


def _webp_parts(view: memoryview) -> Iterator[_Part]:
    (size,) = struct.unpack_from("<I", view, 4)
    view, start = view[: 8 + size], 12
    while start + 8 <= len(view):
        name, length = struct.unpack_from("<4sI", view, start)
        end = min(start + 8 + length + length % 2, len(view))
        yield _Part(name, start, end, view[start + 8 : start + 8 + length])
        start = end


def _unpack_jpeg(view: memoryview) -> Contents:
    spans: list[tuple[int, int]] = []
    parts: dict[bytes, _Part] = {}
    profile: dict[int, memoryview] = {}
    table_bytes, scans = 0, 0
    for part in _bounded(_jpeg_parts(view)):
        name, content = part.name, part.content
        if name == _EXIF and content[: len(_EXIF_HEAD)] != _EXIF_HEAD:  # XMP uses the same marker
            continue
        if name == _ICC and content[: len(_ICC_HEAD)] == _ICC_HEAD and len(content) > _ICC_CONTENT:
            profile.setdefault(content[len(_ICC_HEAD)], content[_ICC_CONTENT:])
        if name in _JPEG_PARTS or (name in (_JFIF, _ADOBE) and name not in parts):
            _keep(spans, part)
            scans += name == _SOS
            table_bytes += part.end - part.start if name != _SOS else 0
        parts.setdefault(name, part)
    if table_bytes > _MAX_TABLE_BYTES:
        raise InvalidImageError(f"The JPEG has more than {_MAX_TABLE_BYTES} bytes of tables.", param="image")
    return Contents(
        "JPEG",
        [_JPEG_MAGIC[:2], *(view[start:end] for start, end in spans)],
        orientation=_orientation(parts.get(_EXIF)),
        profile=_bounded_profile(b"".join(piece for _, piece in sorted(profile.items()))),
        bytes_per_pixel=4 + _coefficient_bytes(parts),
        scans=scans,
    )


def _jpeg_parts(view: memoryview) -> Iterator[_Part]:
    found = _next_marker(view, 2)
    while found is not None:
        name, start = found[1], found.start()
        if name == _EOI:
            yield _Part(name, start, start + 2, view[:0])
            return
        end = start + 2 + int.from_bytes(view[start + 2 : start + 4], "big")
        found = _next_marker(view, end)
        if name == _SOS:  # with the entropy-coded data behind it
            end = found.start() if found else len(view)
        yield _Part(name, start, end, view[start + 4 : end])


def _next_marker(view: memoryview, start: int) -> re.Match[bytes] | None:
    """Search piece by piece, because a search holds the GIL and a scan can be nearly the whole file."""
    for at in range(start, len(view), _SEARCHED_BYTES):
        found = _JPEG_MARKER.search(view, at, at + _SEARCHED_BYTES + 1)  # a marker has two bytes
        if found is not None:
            return found
    return None


def _coefficient_bytes(parts: Mapping[bytes, _Part]) -> float:
    """Return how much memory a pixel's coefficients take, if libjpeg has to hold those of the whole picture.

    It has to if one scan is only a part of the data: in a progressive JPEG, and if each component has its own scan.
    """
    frames = [parts[name].content for name in _JPEG_FRAMES if name in parts]
    if len(frames) != 1 or _SOS not in parts:  # libjpeg rejects it
        return 0
    sampling = [(factors >> 4, factors & 15) for factors in frames[0][7::3]]
    per_block = max((h for h, _ in sampling), default=0) * max((v for _, v in sampling), default=0)
    in_one_pass = parts[_SOS].content[:1] == bytes([len(sampling)]) and not _PROGRESSIVE & parts.keys()
    return 0 if in_one_pass or not per_block else 2 * sum(h * v for h, v in sampling) / per_block


def _keep(spans: list[tuple[int, int]], part: _Part) -> None:
    """Add a part to spans of the file. Neighbours are one span, so that many small chunks are few objects."""
    start = spans.pop()[0] if spans and spans[-1][1] == part.start else part.start
    spans.append((start, part.end))


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
    """Return the orientation in the EXIF data; 1 (upright) if it has none or is damaged."""
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
    """Return the error for a picture that cannot be decoded."""
    return InvalidImageError("The picture is truncated or damaged.", param="image")


def _animated() -> InvalidImageError:
    return InvalidImageError("The picture is animated; send a single frame.", param="image")
