"""How many prefix codes a lossless WebP declares, read before it is decoded: libwebp spends about 30 KB on each.

Encoders write at most some thousands of groups of codes, but 350 KB of file can declare 65,536. What stands before them
is small pictures (of transforms, and of which group is used where), and these are read through here; nothing of the
picture itself is. The format is that of Google's "WebP Lossless Bitstream Specification".
"""

from app.errors import InvalidImageError

_MAX_GROUPS = 3000
"""libwebp's encoder makes no more than 2600."""

_MAX_SYMBOLS = 100_000
"""Symbols that are read here, at some microseconds each; libwebp's encoder needs some ten thousand."""

_PREDICTOR, _COLOR, _PALETTE = 0, 1, 3
"""Transforms that have data; subtracting green has none."""

_LENGTH_ORDER = (17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
_LITERALS, _LENGTHS, _DISTANCES = 256, 24, 40

Code = tuple[int, list[tuple[int, int]]]
"""How many bits to look at, and for each value of these the symbol and how many bits it has."""


def check_codes(data: bytes | memoryview, width: int, height: int) -> None:
    """Read a lossless stream up to its pixels, from behind the header that names its size.

    Raises:
        InvalidImageError: It declares more codes than any encoder does.
    """
    _Reader(data).check_codes(width, height)


class _Reader:
    def __init__(self, data: bytes | memoryview) -> None:
        self._data = data
        self._at = 0  # in bits
        self._symbols = 0

    def check_codes(self, width: int, height: int) -> None:
        seen: set[int] = set()
        while self._bits(1):
            transform = self._bits(2)
            if transform in seen:  # libwebp refuses it too; and they would go on for as long as the file
                raise InvalidImageError("The WebP is damaged: it has a transform twice.", param="image")
            seen.add(transform)
            if transform in (_PREDICTOR, _COLOR):
                self._read_tiles(width, height)
            elif transform == _PALETTE:
                colors = self._bits(8) + 1
                self._read_picture(colors)
                packed = next((bits for most, bits in ((2, 3), (4, 2), (16, 1)) if colors <= most), 0)
                width = -(-width >> packed)
        if self._bits(1):
            self._bits(4)  # the size of the cache of colours
        if self._bits(1) and self._read_tiles(width, height) >= _MAX_GROUPS:
            raise InvalidImageError("The WebP declares more prefix codes than any encoder does.", param="image")

    def _bits(self, number: int) -> int:
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

    def _read_tiles(self, width: int, height: int) -> int:
        bits = self._bits(3) + 2
        return self._read_picture(-(-width >> bits) * -(-height >> bits))

    def _read_picture(self, pixels: int) -> int:
        """Read a small picture of one group of codes; return the largest red and green in it, as one number."""
        cache = 1 << self._bits(4) if self._bits(1) else 0
        green, red, blue, alpha, distance = (
            self._code(symbols) for symbols in (_LITERALS + _LENGTHS + cache, *[_LITERALS] * 3, _DISTANCES)
        )
        largest = 0
        while pixels > 0:
            self._symbols += 1
            if self._symbols > _MAX_SYMBOLS or self._at > 8 * len(self._data):
                raise InvalidImageError(
                    "The WebP is damaged, or more complicated than encoders make it.", param="image"
                )
            symbol = self._symbol(green)
            pixels -= 1
            if symbol < _LITERALS:
                largest = max(largest, self._symbol(red) << 8 | symbol)
                self._symbol(blue)
                self._symbol(alpha)
            elif symbol < _LITERALS + _LENGTHS:
                pixels -= self._number(symbol - _LITERALS)
                self._number(self._symbol(distance))
        return largest

    def _number(self, prefix: int) -> int:
        """Return a length or distance, less one."""
        extra = max(0, (prefix - 2) >> 1)
        return prefix if not extra else ((2 + (prefix & 1)) << extra) + self._bits(extra)

    def _code(self, symbols: int) -> Code:
        if self._bits(1):
            two, wide = self._bits(1), self._bits(1)
            chosen = [self._bits(8 if wide else 1), *([self._bits(8)] if two else [])]
            return two, [(symbol, two) for symbol in chosen]
        lengths = dict.fromkeys(range(len(_LENGTH_ORDER)), 0)
        lengths |= {symbol: self._bits(3) for symbol in _LENGTH_ORDER[: self._bits(4) + 4]}
        return _table(self._code_lengths(symbols, _table(list(lengths.values()))))

    def _code_lengths(self, symbols: int, code: Code) -> list[int]:
        left = 2 + self._bits(2 + 2 * self._bits(3)) if self._bits(1) else symbols
        lengths: list[int] = []
        last = 8
        while len(lengths) < symbols and left > 0:
            left -= 1
            match self._symbol(code):
                case 16:
                    lengths += [last] * (3 + self._bits(2))
                case 17:
                    lengths += [0] * (3 + self._bits(3))
                case 18:
                    lengths += [0] * (11 + self._bits(7))
                case length:
                    lengths.append(length)
                    last = length or last
        return lengths


def _table(lengths: list[int]) -> Code:
    """Make the code that has symbols of these lengths in bits. Codes are canonical; bits come last first."""
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
