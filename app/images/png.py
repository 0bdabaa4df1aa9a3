"""Writes RGB pictures as PNG files in little CPU time: NumPy filters the rows, and ISA-L's igzip deflates them.

Files are about as small as at zlib's default level (figures: `benchmarks/png.py`), because of three choices:

- One filter for the whole picture: Average for grain, Paeth for areas and edges. A sample of rows decides.
- igzip with a window of 4 KiB: in grain, chance matches far back take more bits than the bytes they replace.
- zlib's lazy matching for flat or smooth pictures: it saves another quarter to half, and is fast with long matches.

NumPy and both compressors release the GIL. Work is done in bands of rows, so that no step between holds it for long.

Sections are those of the PNG specification (W3C Recommendation, third edition).
"""

import re
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from isal import isal_zlib
from PIL.PngImagePlugin import PngInfo

Bytes = npt.NDArray[np.uint8]

_C1 = re.compile("[\x7f-\x9f]")
"""Control characters of Latin-1 that tEXt must not contain (section 11.3.3.2)."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = 3

_MAX_SIDE = 2**31 - 1  # section 11.2.1 (IHDR)
_BAND_BYTES = 1 << 17  # bytes of a band; the filter's working memory then fits a core's second-level cache

_SAMPLED_ROWS = 16

_COST_LIMIT = 4  # a byte's cost grows with its distance from 0 up to this, about as its bits do after Huffman coding

_PAETH_SHARE = 0.85
"""Paeth is used if it costs less than this share of Average. Nearly all grain, random or photographed, costs 0.9 or
more and gives larger files with Paeth. Stripes and flat art cost 0.8 or less and give smaller files."""

_FLAT_SHARE = 10  # a picture that igzip makes this many times smaller is flat or smooth

_AVERAGE, _PAETH = 3, 4
"""Filter types: the first byte of a row (section 9.2)."""


def encode_png(pixels: Bytes, *, text: str | None = None, xmp: bytes | None = None) -> bytes:
    """Write an RGB picture of shape (height, width, 3) as a PNG, not interlaced. Blocks; call it in a thread.

    The bytes depend on the arguments, the processor's instruction set (igzip's matches may differ) and the libraries'
    versions. The decoded pixels are always the same.

    The text gets the keyword `parameters`. It is in Latin-1 (tEXt, section 11.3.3.2) if possible, else in UTF-8 (iTXt,
    section 11.3.3.4). It and the XMP packet precede the pixels, for readers that stop there.

    Raises:
        ValueError: Shape or type are wrong, or a side is 0 or more than 2**31 - 1.
    """
    if pixels.dtype != np.uint8:
        raise ValueError(f"Pixels must be of type uint8, not {pixels.dtype}.")
    if pixels.ndim != _CHANNELS or pixels.shape[2] != _CHANNELS:
        raise ValueError(f"Pixels must be of shape (height, width, 3), not {pixels.shape}.")
    if not all(0 < side <= _MAX_SIDE for side in pixels.shape[:2]):
        raise ValueError(f"A side must have 1 to {_MAX_SIDE} pixels, not {pixels.shape[1]}x{pixels.shape[0]}.")
    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 2 is truecolour (section 11.2.1)
    image_data = [(b"IDAT", piece) for piece in _deflated(pixels)]
    chunks = [(b"IHDR", header), *_text_chunks(text, xmp), *image_data, (b"IEND", b"")]
    return b"".join([_SIGNATURE, *(part for name, content in chunks for part in _chunk(name, content))])


def _text_chunks(text: str | None, xmp: bytes | None) -> list[tuple[bytes, bytes]]:
    info = PngInfo()
    if text is not None:
        add = info.add_itxt if _C1.search(text) else info.add_text
        add("parameters", text)
    if xmp is not None:
        info.add_itxt("XML:com.adobe.xmp", xmp)  # not compressed (XMP specification, part 3, section 1.1.5)
    return [(name, content) for name, content, *_ in info.chunks]


def _chunk(name: bytes, content: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Return length, name, content and checksum (section 5.3)."""
    checksum = isal_zlib.crc32(content, isal_zlib.crc32(name))
    return struct.pack(">I", len(content)), name, content, struct.pack(">I", checksum)


def _deflated(pixels: Bytes) -> list[bytes]:
    """Return one zlib stream, in pieces."""
    filter_type = _filter_type(pixels)
    near = isal_zlib.compressobj(level=1, wbits=12)
    pieces = [*(near.compress(band.data) for band in _filtered(pixels, filter_type)), near.flush()]
    if sum(map(len, pieces)) * _FLAT_SHARE < pixels.size:
        lazy = zlib.compressobj(level=4, strategy=zlib.Z_FILTERED)  # 4 is the first level that matches lazily
        pieces = [*(lazy.compress(band.data) for band in _filtered(pixels, filter_type)), lazy.flush()]
    return [piece for piece in pieces if piece]


def _filter_type(pixels: Bytes) -> int:
    """Choose by a few rows, as "Filter selection" in the specification's chapter 12 does for each row."""
    step = max(1, len(pixels) // _SAMPLED_ROWS)
    rows, rows_above = pixels[1::step], pixels[:-1:step]
    left, above, upper_left = rows[:, :-1], rows_above[:, 1:], rows_above[:, :-1]
    average, paeth = (_cost(rows[:, 1:] - predict(left, above, upper_left)) for predict in (_average, _paeth))
    return _PAETH if paeth < _PAETH_SHARE * average else _AVERAGE


def _cost(filtered: Bytes) -> int:
    return int(np.minimum(np.minimum(filtered, -filtered), _COST_LIMIT).sum())


def _filtered(pixels: Bytes, filter_type: int) -> Iterator[Bytes]:
    """Yield bands of filtered rows, each row behind its filter type. A band is valid until the next is yielded.

    The buffer has a pixel of zeros before each row and a row of zeros before the first (section 9.2). So the bytes to
    the left, above and upper left of a band are slices of one line, which NumPy processes twice as fast as rows.
    """
    height, width, _ = pixels.shape
    row_bytes = width * _CHANNELS
    stride = _CHANNELS + row_bytes
    band_rows = min(height, max(1, _BAND_BYTES // stride))
    line = np.zeros((1 + band_rows) * stride + _CHANNELS, np.uint8)
    rows = line[_CHANNELS:].reshape(1 + band_rows, stride)[:, :row_bytes]
    filtered = np.empty((band_rows, 1 + row_bytes), np.uint8)
    filtered[:, 0] = filter_type
    predict = _average if filter_type == _AVERAGE else _paeth
    for first in range(0, height, band_rows):
        count = min(band_rows, height - first)
        size = count * stride
        rows[0] = rows[-1]
        rows[1 : 1 + count].reshape(count, width, _CHANNELS)[:] = pixels[first : first + count]
        above_and_left = line[:size]
        predicted = predict(line[stride : stride + size], line[_CHANNELS : _CHANNELS + size], above_and_left)
        np.subtract(rows[1 : 1 + count], predicted.reshape(count, stride)[:, :row_bytes], out=filtered[:count, 1:])
        yield filtered[:count]


def _average(left: Bytes, above: Bytes, _: Bytes) -> Bytes:
    """Return half the sum, rounded down (section 9.3), without a ninth bit."""
    return (left & above) + ((left ^ above) >> 1)


def _paeth(left: Bytes, above: Bytes, upper_left: Bytes) -> Bytes:
    """Return the one of the three that is nearest to left + above - upper left (section 9.4), without a ninth bit.

    Let low <= high be left and above, `up` the distance of the upper left below high, `down` its distance above low,
    both at least 0. High is nearest if down <= up / 2, low if up <= down / 2, else the upper left. If both conditions
    hold, the three are equal.
    """
    up = np.maximum(left, above)
    np.maximum(up, upper_left, out=up)
    up -= upper_left
    down = np.minimum(left, above)
    np.minimum(down, upper_left, out=down)
    np.subtract(upper_left, down, out=down)
    rise = (down <= up >> 1).view(np.uint8)
    fall = (up <= down >> 1).view(np.uint8)
    return upper_left + rise * up - fall * down
