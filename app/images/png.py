"""Writes RGB pictures as PNG files, for the CPU's sake: rows are filtered in NumPy and deflated by ISA-L's igzip.

Three choices make a file about as small as zlib's default level does, in a fraction of its time. `benchmarks/png.py`
has the figures.

One filter serves a whole picture: Average where there is grain, Paeth where there are areas and edges. A few rows tell.

igzip looks back 4 KiB only. In grain, a chance match far back takes more bits than the bytes it stands for.

What igzip leaves tiny is flat or smooth. There zlib's lazy matching takes off another quarter or half, in little time
because matches are long.

NumPy and both compressors release the GIL; no step between them holds it for long, since a picture goes through them in
bands of rows.

Sections named are those of the PNG specification (W3C Recommendation, third edition).
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt
from isal import isal_zlib
from PIL.PngImagePlugin import PngInfo

Bytes = npt.NDArray[np.uint8]

_C1 = re.compile("[\x7f-\x9f]")
"""Control characters, which tEXt must not have (section 11.3.3.2), though Latin-1 does."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_CHANNELS = 3

_XMP_KEYWORD = "XML:com.adobe.xmp"

_MAX_SIDE = 2**31 - 1
"""Section 11.2.1 (IHDR)."""

_BAND_BYTES = 1 << 17
"""Filtered at a time: what the filter works on then stays in a core's second-level cache."""

_SAMPLED_ROWS = 16

_COST_LIMIT = 4
"""A byte's cost grows with its distance from 0, up to here: about as its bits do after Huffman coding."""

_PAETH_SHARE = 0.85
"""Paeth is taken where it costs less than this share of Average. Of grain, drawn by chance or photographed, nearly all
costs 0.9 or more and makes larger files by Paeth; stripes and flat art cost 0.8 or less and make smaller ones."""

_FLAT_SHARE = 10
"""A picture is flat or smooth if igzip makes it this many times smaller."""


class _FilterType(IntEnum):
    """What a row begins with (section 9.2)."""

    AVERAGE = 3
    PAETH = 4


class _Compressor(Protocol):
    """What igzip and zlib have in common."""

    def compress(self, data: memoryview, /) -> bytes: ...

    def flush(self) -> bytes: ...


def encode_png(pixels: Bytes, *, text: str | None = None, xmp: bytes | None = None) -> bytes:
    """Write a PNG of 8 bits a channel, without interlace. Blocks; call it in a thread.

    The bytes depend on the arguments, the processor's kind and the libraries' versions: igzip's matches may differ
    between instruction sets. The pixels read back never do.

    Args:
        pixels: The picture, of shape (height, width, 3): red, green, blue. Need not be contiguous.
        text: What stands under the keyword `parameters`: Latin-1 without control characters (tEXt, section 11.3.3.2) if
            it fits, else UTF-8 (iTXt, section 11.3.3.4). Without it there is no such chunk.
        xmp: An XMP packet. It and the text stand before the pixels, for readers that stop there.

    Raises:
        ValueError: The shape or the type is another, or a side is 0 or more than 2**31 - 1.
    """
    _check(pixels)
    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 2 is truecolour (section 11.2.1)
    image_data = [(b"IDAT", piece) for piece in _deflated(pixels)]
    chunks = [(b"IHDR", header), *_text_chunks(text, xmp), *image_data, (b"IEND", b"")]
    return b"".join([_SIGNATURE, *(part for name, content in chunks for part in _chunk(name, content))])


def _check(pixels: Bytes) -> None:
    if pixels.dtype != np.uint8:
        raise ValueError(f"Pixels are of type uint8, not {pixels.dtype}.")
    if pixels.ndim != _CHANNELS or pixels.shape[2] != _CHANNELS:
        raise ValueError(f"Pixels are of shape (height, width, 3), not {pixels.shape}.")
    if not all(0 < side <= _MAX_SIDE for side in pixels.shape[:2]):
        raise ValueError(f"A side has 1 to {_MAX_SIDE} pixels, not {pixels.shape[1]}x{pixels.shape[0]}.")


def _text_chunks(text: str | None, xmp: bytes | None) -> list[tuple[bytes, bytes]]:
    info = PngInfo()
    if text is not None:
        add = info.add_itxt if _C1.search(text) else info.add_text
        add("parameters", text)
    if xmp is not None:
        info.add_itxt(_XMP_KEYWORD, xmp)  # not compressed (XMP specification, part 3, section 1.1.5)
    return [(name, content) for name, content, *_ in info.chunks]


def _chunk(name: bytes, content: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Length, name, content and checksum (section 5.3)."""
    checksum = isal_zlib.crc32(content, isal_zlib.crc32(name))
    return struct.pack(">I", len(content)), name, content, struct.pack(">I", checksum)


def _deflated(pixels: Bytes) -> list[bytes]:
    """One zlib stream, in pieces."""
    filter_type = _filter_type(pixels)
    pieces = _compressed(_filtered(pixels, filter_type), isal_zlib.compressobj(level=1, wbits=12))
    if sum(map(len, pieces)) * _FLAT_SHARE < pixels.size:
        lazy = zlib.compressobj(level=4, strategy=zlib.Z_FILTERED)  # 4 is the first level that matches lazily
        pieces = _compressed(_filtered(pixels, filter_type), lazy)
    return pieces


def _compressed(bands: Iterator[Bytes], compressor: _Compressor) -> list[bytes]:
    pieces = [*(compressor.compress(band.data) for band in bands), compressor.flush()]
    return [piece for piece in pieces if piece]


def _filter_type(pixels: Bytes) -> _FilterType:
    """Choose by a few rows, far apart, as "Filter selection" in the specification's chapter 12 does by every row."""
    step = max(1, len(pixels) // _SAMPLED_ROWS)
    rows, rows_above = pixels[1::step], pixels[:-1:step]
    left, above, upper_left = rows[:, :-1], rows_above[:, 1:], rows_above[:, :-1]
    average, paeth = (_cost(rows[:, 1:] - predict(left, above, upper_left)) for predict in (_average, _paeth))
    return _FilterType.PAETH if paeth < _PAETH_SHARE * average else _FilterType.AVERAGE


def _cost(filtered: Bytes) -> int:
    return int(np.minimum(np.minimum(filtered, -filtered), _COST_LIMIT).sum())


def _filtered(pixels: Bytes, filter_type: _FilterType) -> Iterator[Bytes]:
    """Yield bands of filtered rows, each row behind its filter type. A band is valid until the next is asked for.

    Rows lie in a buffer one behind another, with a pixel of zeros before each and a row of zeros before the first: what
    section 9.2 says to take for bytes outside of the picture. So the bytes to the left, above and upper left of a band
    are stretches of one line, which NumPy goes through at twice the speed of rows.
    """
    height, width, _ = pixels.shape
    row_bytes = width * _CHANNELS
    stride = _CHANNELS + row_bytes
    band_rows = min(height, max(1, _BAND_BYTES // stride))
    line = np.zeros((1 + band_rows) * stride + _CHANNELS, np.uint8)
    rows = line[_CHANNELS:].reshape(1 + band_rows, stride)[:, :row_bytes]
    filtered = np.empty((band_rows, 1 + row_bytes), np.uint8)
    filtered[:, 0] = filter_type
    predict = _PREDICTORS[filter_type]
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
    """Half the sum, rounded down (section 9.3), without a ninth bit."""
    return (left & above) + ((left ^ above) >> 1)


def _paeth(left: Bytes, above: Bytes, upper_left: Bytes) -> Bytes:
    """Of the three, the one nearest to left + above - upper left (section 9.4), without a ninth bit.

    Let low <= high be left and above, `up` how far the upper left lies below high, `down` how far above low, neither
    less than 0. High is nearest if down <= up / 2, low is if up <= down / 2, else the upper left is. If both hold, the
    three are equal.
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


_PREDICTORS: dict[_FilterType, Callable[[Bytes, Bytes, Bytes], Bytes]] = {
    _FilterType.AVERAGE: _average,
    _FilterType.PAETH: _paeth,
}
