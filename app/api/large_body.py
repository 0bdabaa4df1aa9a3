"""A body of megabytes: held once, and never copied, searched or decoded as a whole.

Python copies and searches memory without letting another thread run. For 30 MiB that takes up to 30 ms, most of it the
kernel's work on fresh pages, and the event loop stands still meanwhile, whichever thread does it.
"""

import base64
import binascii
import json
import re
import secrets
from collections.abc import AsyncIterable, Iterable, Iterator
from typing import Any

from app.api.error_handlers import MAX_NAME_CHARACTERS
from app.api.json_body import parse_json
from app.api.limits import MAX_JSON_BYTES
from app.api.schemas import MAX_PROMPT_CHARACTERS
from app.errors import BodyTooLargeError, InvalidImageError, MalformedBodyError
from app.inference.memory import reserve

PIECE_BYTES = 1 << 18
"""As much as is handled at once; takes a millisecond at most. A multiple of 4."""

_BEGIN_BYTES = 2 * MAX_PROMPT_CHARACTERS + 2
"""As much as stands for a long text: also where all of it is escaped it is longer than a field may be."""

_PLAIN = re.compile(rb"\w*")


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
        return next(self._pieces(_BEGIN_BYTES))

    def decode_base64(self) -> memoryview:
        """Return the file, which takes the place of the text. Blocks; call it in a thread, and once.

        Raises:
            InvalidImageError: The text is not base64.
            MalformedBodyError: It is no JSON string.
        """
        length = 0
        for piece in decoded_base64(self._pieces(PIECE_BYTES)):
            self._escaped[length : length + len(piece)] = piece
            length += len(piece)
        return self._escaped[:length]

    def _pieces(self, size: int) -> Iterator[str]:
        start = 0
        while start < len(self._escaped):
            piece = bytes(self._escaped[start : start + size])
            if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # the end is in the middle of an escape
                piece = bytes(self._escaped[start : start + size + 1])
            yield self._unescaped(piece, start)
            start += len(piece)

    def _unescaped(self, piece: bytes, start: int) -> str:
        try:
            text: str = json.loads(b'"%b"' % piece)
        except json.JSONDecodeError as error:
            position = self._position + start + error.pos - 1
            reason = error.msg.removesuffix(" at")
            raise MalformedBodyError(f"The body is not JSON: {reason} at character {position}.") from error
        return text


def parse_json_around(body: memoryview) -> tuple[Any, str, LongText | None]:
    """Return the value that the body is, without its one text that may be long. Blocks; call it in a thread.

    Returns:
        The value, what stands in it for the long text, and that text, if there is one.

    Raises:
        BodyTooLargeError: The JSON is long beside the text.
        InvalidImageError: The text is not base64.
        MalformedBodyError: It is not JSON.
        InvalidRequestError: An object has a name twice.
    """
    start, end = _longest_text(body)
    if len(body) - (end - start) > MAX_JSON_BYTES:
        raise _too_much()
    if end - start <= MAX_JSON_BYTES:
        return parse_json(bytes(body)), "", None
    text = body[start:end]
    _check_may_be_base64(text)
    before, stand_in, after = bytes(body[:start]), _stand_in(text), bytes(body[end:])
    position = len(before.decode("utf-8-sig", errors="replace"))

    def place(found: int) -> int:
        return found if found < position + len(stand_in) else found - len(stand_in) + len(text)

    try:
        value = parse_json(before + stand_in + after, place=place)
    except MalformedBodyError as error:
        cause = error.__cause__
        if isinstance(cause, json.JSONDecodeError) and position <= cause.pos < position + len(stand_in):
            raise _too_much() from error  # what is long is not in a string
        raise
    return value, stand_in.decode(), LongText(text, position=position)


def _stand_in(text: memoryview) -> bytes:
    """Return what no client can have sent, and no field may be as long as; errors repeat how a name begins."""
    begin = _PLAIN.match(text[:MAX_NAME_CHARACTERS])
    return (begin[0] if begin else b"") + secrets.token_hex(_BEGIN_BYTES // 2).encode()


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


def _too_much() -> BodyTooLargeError:
    return BodyTooLargeError(f"The JSON has more than {MAX_JSON_BYTES} bytes beside the picture.")


def _longest_text(body: memoryview) -> tuple[int, int]:
    """Return where what is longest between two quotation marks begins and ends."""
    longest, after, marks = (0, 0), 0, 0
    for at, piece in _pieces_of(body):
        found = piece.find(b'"')
        while found >= 0:
            marks += 1
            if marks > MAX_JSON_BYTES:
                raise _too_much()
            longest = max(longest, (after, at + found), key=_length)
            after = at + found + 1
            found = piece.find(b'"', found + 1)
    return max(longest, (after, len(body)), key=_length)


def _length(span: tuple[int, int]) -> int:
    return span[1] - span[0]


def _check_may_be_base64(text: memoryview) -> None:
    """Tell a picture from many values, and from text that takes four bytes a character. A data URL has a comma."""
    commas, before = 0, b""
    for _, piece in _pieces_of(text):
        commas += piece.count(b",")
        if not piece.isascii() or b"\\u" in before + piece[:1] or b"\\u" in piece or b"[" in piece or commas > 1:
            raise no_base64()
        before = piece[-1:]
    if before == b"\\":  # the quotation mark behind it is the text's own
        raise no_base64()


def _pieces_of(body: memoryview) -> Iterator[tuple[int, bytes]]:
    return ((at, bytes(body[at : at + PIECE_BYTES])) for at in range(0, len(body), PIECE_BYTES))
