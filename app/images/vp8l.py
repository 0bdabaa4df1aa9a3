"""Bounds the prefix codes of a lossless WebP before libwebp decodes it.

A picture can have up to 65,536 groups of codes, and libwebp 1.6 holds 5 to 14 KB of tables for each: a file of 295 KB
took 366 MB, one of 11 MB took 870 MB (measured). No size in the header bounds the groups. So the stream is read up to
the size of the blocks that have groups: past the transforms, which are small pictures themselves.

The format is that of Google's "WebP Lossless Bitstream Specification".
"""

from app.errors import InvalidImageError

_MAX_BLOCKS = 3000
"""Blocks that may have a group of their own. libwebp's encoder makes at most 2600 (`MAX_HUFF_IMAGE_SIZE`)."""

_MAX_SYMBOLS = 100_000
"""Symbols read here, at a few microseconds each. Files of libwebp's encoder need about ten thousand."""

_PREDICTOR, _COLOR, _PALETTE = 0, 1, 3
"""Transforms with data. The fourth, subtract green, has none."""

_LENGTH_ORDER = (17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
_LITERALS, _LENGTHS, _DISTANCES = 256, 24, 40

Code = tuple[int, list[tuple[int, int]]]
"""Bits to look at, and for each value of these bits the symbol and its length in bits."""


def check_codes(data: bytes | memoryview, width: int, height: int) -> None:
    """Read a lossless stream, behind the header with its size, up to its pixels.

    Raises:
        InvalidImageError: It has more blocks with codes than any encoder makes, or is damaged.
    """
    stream = _Stream(data)
    seen: set[int] = set()
    while stream.bits(1):
        transform = stream.bits(2)
        if transform in seen:  # libwebp rejects this too; without the check they could fill the whole file
            raise InvalidImageError("The WebP is damaged: it has a transform twice.", param="image")
        seen.add(transform)
        if transform in (_PREDICTOR, _COLOR):
            stream.skip_picture(_blocks(stream, width, height))
        elif transform == _PALETTE:
            colors = stream.bits(8) + 1
            stream.skip_picture(colors)
            packed = next((bits for most, bits in ((2, 3), (4, 2), (16, 1)) if colors <= most), 0)
            width = -(-width >> packed)
    if stream.bits(1):
        stream.bits(4)  # the size of the colour cache
    if stream.bits(1) and (blocks := _blocks(stream, width, height)) > _MAX_BLOCKS:
        reason = f"The WebP has {blocks} blocks with prefix codes; at most {_MAX_BLOCKS} are allowed. Send it as PNG."
        raise InvalidImageError(reason, param="image")


def _blocks(stream: "_Stream", width: int, height: int) -> int:
    """Read the size of the blocks that a picture is divided into, and return their number."""
    bits = stream.bits(3) + 2
    return -(-width >> bits) * -(-height >> bits)


class _Stream:
    """Bits of a stream, least significant first."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = data
        self._at = 0  # in bits
        self._symbols = 0

    def bits(self, number: int) -> int:
        value = self._peek(number)
        self._at += number
        return value

    def _peek(self, number: int) -> int:
        start = self._at >> 3
        return (int.from_bytes(self._data[start : start + 4], "little") >> (self._at & 7)) & ((1 << number) - 1)

    def _symbol(self, code: Code) -> int:
        longest, table = code
        symbol, length = table[self._peek(longest)]
        self._at += length
        return symbol

    def skip_picture(self, pixels: int) -> None:
        """Read past a small picture, which has one group of codes."""
        cache = 1 << self.bits(4) if self.bits(1) else 0
        green, red, blue, alpha, distance = (
            self._code(symbols) for symbols in (_LITERALS + _LENGTHS + cache, *[_LITERALS] * 3, _DISTANCES)
        )
        while pixels > 0:
            self._symbols += 1
            if self._symbols > _MAX_SYMBOLS or self._at > 8 * len(self._data):
                raise InvalidImageError("The WebP is damaged or its transforms are too large.", param="image")
            symbol = self._symbol(green)
            pixels -= 1
            if symbol < _LITERALS:
                _ = self._symbol(red), self._symbol(blue), self._symbol(alpha)
            elif symbol < _LITERALS + _LENGTHS:
                pixels -= self._number(symbol - _LITERALS)
                self._number(self._symbol(distance))

    def _number(self, prefix: int) -> int:
        """Read the rest of a length or distance; return it less one."""
        extra = max(0, (prefix - 2) >> 1)
        return prefix if not extra else ((2 + (prefix & 1)) << extra) + self.bits(extra)

    def _code(self, symbols: int) -> Code:
        if self.bits(1):
            two, wide = self.bits(1), self.bits(1)
            chosen = [self.bits(8 if wide else 1), *([self.bits(8)] if two else [])]
            return two, [(symbol, two) for symbol in chosen]
        lengths = dict.fromkeys(range(len(_LENGTH_ORDER)), 0)
        lengths |= {symbol: self.bits(3) for symbol in _LENGTH_ORDER[: self.bits(4) + 4]}
        return _table(self._code_lengths(symbols, _table(list(lengths.values()))))

    def _code_lengths(self, symbols: int, code: Code) -> list[int]:
        left = 2 + self.bits(2 + 2 * self.bits(3)) if self.bits(1) else symbols
        lengths: list[int] = []
        last = 8
        while len(lengths) < symbols and left > 0:
            left -= 1
            match self._symbol(code):
                case 16:
                    lengths += [last] * (3 + self.bits(2))
                case 17:
                    lengths += [0] * (3 + self.bits(3))
                case 18:
                    lengths += [0] * (11 + self.bits(7))
                case length:
                    lengths.append(length)
                    last = length or last
        return lengths


def _table(lengths: list[int]) -> Code:
    """Make the canonical code whose symbols have these lengths in bits. In the stream, a code's bits are reversed."""
    used = sorted((length, symbol) for symbol, length in enumerate(lengths) if length)
    if len(used) < 2:  # noqa: PLR2004 - one symbol needs no bits
        return 0, [(used[0][1] if used else 0, 0)]
    longest = used[-1][0]
    table = [(0, 0)] * (1 << longest)
    code, before = 0, 0
    for length, symbol in used:
        code <<= length - before
        before = length
        reverse = int(f"{code:0{length}b}"[::-1], 2)
        table[reverse :: 1 << length] = [(symbol, length)] * len(range(reverse, 1 << longest, 1 << length))
        code += 1
    return longest, table
