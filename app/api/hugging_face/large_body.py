"""A body of megabytes: held once, and never copied, searched or decoded as a whole.

Python copies and searches memory without letting another thread run. For 30 MiB that takes up to 30 ms, most of it the
kernel's work on fresh pages, and the event loop stands still meanwhile, whichever thread does it.
"""

import base64
import binascii
import codecs
import json
import secrets
from collections.abc import AsyncIterable, Iterable, Iterator
from typing import Any

from app.api.errors import MAX_NAME_CHARACTERS
from app.api.gate.body_limits import MAX_JSON_BYTES
from app.api.json_body import check_begin, decode_text, not_json, not_utf8, parse_json, parse_text
from app.errors import BodyTooLargeError, InvalidImageError, InvalidRequestError, MalformedBodyError
from app.images.memory import reserve
from app.inference.requests import MAX_PROMPT_CHARACTERS

PIECE_BYTES = 1 << 18
"""As much as is handled at once; takes a millisecond at most. A multiple of 4."""

_BEGIN_BYTES = 12 * (MAX_PROMPT_CHARACTERS + 2)
"""As much as a long text is judged by: longer than a field may be, also where each character is escaped in twelve."""

_LONGEST_ESCAPE = len("\\u0000")


async def read_body(parts: AsyncIterable[bytes], *, max_bytes: int) -> memoryview:
    """Read a body, which `max_bytes` bounds already; `request.body()` would keep it as long as the request.

    Memory is reserved for the largest one, and taken as the body arrives.
    """
    held, length = reserve(max_bytes), 0
    async for part in parts:
        held[length : length + len(part)] = part
        length += len(part)
    return memoryview(held)[:length]


class LongText:
    """A string in a JSON body, as it stands there between its quotation marks: as a rule a file in base64."""

    def __init__(self, escaped: memoryview, *, position: int) -> None:
        self._escaped = escaped
        self._position = position

    @property
    def begin(self) -> str:
        """How the text begins, by which a picture is told from a prompt; it is too long to be one."""
        return next(self._pieces(_BEGIN_BYTES))[:-1]  # the last character may be half of a pair

    def check(self) -> None:
        """Check that it is a JSON string. Blocks; call it in a thread.

        Raises:
            MalformedBodyError: It is not.
        """
        for _ in self._pieces(PIECE_BYTES):
            pass

    def decode_base64(self) -> memoryview:
        """Return the file, which takes the place of the text. Blocks; call it in a thread, and once.

        Raises:
            InvalidImageError: The text is not base64.
        """
        length = 0
        for piece in decoded_base64(self._pieces(PIECE_BYTES)):
            self._escaped[length : length + len(piece)] = piece
            length += len(piece)
        return self._escaped[:length]

    def _pieces(self, size: int) -> Iterator[str]:
        """Unescape the text piece by piece. No piece ends within a character or an escape."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        position, start = self._position, 0
        while start < len(self._escaped):
            end = start + size
            piece = bytes(self._escaped[start:end])
            if end < len(self._escaped):
                piece = piece[: _whole_escapes(piece)]
            start += len(piece)
            text = decoder.decode(piece)
            try:
                yield json.loads(f'"{text}"')
            except json.JSONDecodeError as error:
                raise not_json(error, position + error.pos - 1) from error
            position += len(text)


def _whole_escapes(piece: bytes) -> int:
    """Return the length of the piece without an escape that it has only the begin of."""
    last = piece.rfind(b"\\", -_LONGEST_ESCAPE)
    if last < 0 or (last - len(piece[:last].rstrip(b"\\"))) % 2:  # of an even number, the last one is escaped
        return len(piece)
    length = _LONGEST_ESCAPE if piece[last + 1 : last + 2] == b"u" else 2
    return len(piece) if last + length <= len(piece) else last


def parse_json_around(body: memoryview) -> tuple[Any, str, LongText | None]:
    """Return the value that the body is, without its one text that may be long. Blocks; call it in a thread.

    Returns:
        The value, what stands in it for the long text, and that text, if there is one.

    Raises:
        BodyTooLargeError: The JSON is long beside the text.
        MalformedBodyError: It is not JSON.
        InvalidRequestError: An object has a name twice.
    """
    start, end = _longest_text(body)
    if len(body) - (end - start) > MAX_JSON_BYTES:
        raise _too_much(body)
    if end - start <= MAX_JSON_BYTES:
        return parse_json(bytes(body)), "", None
    before = decode_text(bytes(body[:start]), encoding="utf-8-sig")
    characters = _count_characters(body, start, end)
    after = decode_text(bytes(body[end:]), start=end)
    position = len(before)
    text = LongText(body[start:end], position=position)
    stand_in = _stand_in(text)
    escaped = json.dumps(stand_in)[1:-1]

    def place(found: int) -> int:
        return found if found < position + len(escaped) else found - len(escaped) + characters

    try:
        value = parse_text(before + escaped + after, place=place)
    except MalformedBodyError as error:
        cause = error.__cause__
        if isinstance(cause, json.JSONDecodeError) and position <= cause.pos < position + len(escaped):
            raise _too_much(body) from error  # what is long is not in a string
        raise
    except InvalidRequestError:
        text.check()  # what is no JSON counts more
        raise
    text.check()
    return value, stand_in, text


def _count_characters(body: memoryview, start: int, end: int) -> int:
    """Return the number of characters between two bytes.

    Raises:
        MalformedBodyError: They are not UTF-8.
    """
    decoder, characters = codecs.getincrementaldecoder("utf-8")(), 0
    for at, piece in _pieces_of(body[start:end]):
        held = len(decoder.getstate()[0])
        try:
            characters += len(decoder.decode(piece, final=start + at + len(piece) == end))
        except UnicodeDecodeError as error:
            raise not_utf8(start + at - held + error.start) from error
    return characters


def _stand_in(text: LongText) -> str:
    """Return what no client can have sent, and no field may be as long as; errors repeat how a name begins."""
    try:
        begin = text.begin[:MAX_NAME_CHARACTERS]
    except MalformedBodyError:  # whoever checks the text finds it, too
        begin = ""
    return begin + secrets.token_hex(MAX_PROMPT_CHARACTERS)


def decoded_base64(pieces: Iterable[str]) -> Iterator[bytes]:
    """Decode a file in base64, or a data URL. Blanks may stand around it, as they do in a command's output.

    Raises:
        InvalidImageError: It is neither.
    """
    rest, begun, ended = "", False, False
    for piece in pieces:
        text = piece if begun else _without_head(piece.lstrip())
        begun = begun or bool(text)
        stripped = text.rstrip()
        if ended and stripped:
            raise no_base64()
        ended = begun and len(stripped) < len(text)
        text = rest + stripped
        whole = len(text) // 4 * 4
        rest = text[whole:]
        ended = ended or text[:whole].endswith("=")
        try:
            yield base64.b64decode(text[:whole], validate=True)
        except (binascii.Error, ValueError) as error:
            raise no_base64() from error
    if rest:
        raise no_base64()


def no_base64() -> InvalidImageError:
    """Return what is raised for a text that is no picture."""
    return InvalidImageError("The picture is not base64.", param="inputs")


def _without_head(text: str) -> str:
    return text[text.find(",") + 1 :] if text.startswith("data:") else text


def _too_much(body: memoryview) -> BodyTooLargeError:
    """Return what is raised for JSON that is too long.

    Raises:
        MalformedBodyError: It is not JSON, as far as its begin tells.
    """
    check_begin(bytes(body[: 2 * MAX_JSON_BYTES]))
    return BodyTooLargeError(f"The JSON has more than {MAX_JSON_BYTES} bytes beside the picture.")


def _longest_text(body: memoryview) -> tuple[int, int]:
    """Return where what is longest between two quotation marks begins and ends."""
    longest, after, marks = (0, 0), 0, 0
    for at, piece in _pieces_of(body):
        found = piece.find(b'"')
        while found >= 0:
            marks += 1
            if marks > MAX_JSON_BYTES:
                raise _too_much(body)
            longest = max(longest, (after, at + found), key=_length)
            after = at + found + 1
            found = piece.find(b'"', found + 1)
    start, end = max(longest, (after, len(body)), key=_length)
    return start, end - _backslashes_before(body, start, end) % 2  # of an odd number, the last escapes the mark


def _backslashes_before(body: memoryview, start: int, end: int) -> int:
    """Return how many backslashes stand before a byte, one after another."""
    for at in range(end, start, -PIECE_BYTES):
        piece = bytes(body[max(start, at - PIECE_BYTES) : at])
        plain = len(piece.rstrip(b"\\"))
        if plain:
            return end - at + len(piece) - plain
    return end - start


def _length(span: tuple[int, int]) -> int:
    return span[1] - span[0]


def _pieces_of(body: memoryview) -> Iterator[tuple[int, bytes]]:
    return ((at, bytes(body[at : at + PIECE_BYTES])) for at in range(0, len(body), PIECE_BYTES))
