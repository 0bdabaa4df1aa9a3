"""A JSON body of megabytes with a picture in base64: held once, and searched and decoded in place, piece by piece.

Python holds the GIL while it copies or searches memory. For 30 MiB the event loop would stand still for up to 30 ms.
"""

import base64
import json
import re
from collections.abc import AsyncIterable
from itertools import pairwise
from typing import Any

from app.api.gate.body_limits import MAX_JSON_BYTES
from app.api.json_body import parse_json
from app.errors import BodyTooLargeError, InvalidImageError
from app.images.memory import reserve
from app.inference.request_validation import MAX_PROMPT_CHARACTERS

PIECE_BYTES = 1 << 17
"""Handled in one call, which takes 3 ms at most, for text of escapes. A multiple of 4, the length of a base64 group."""

_BEGIN_BYTES = 1024
"""Of a long text, as much as shows whether it is a picture; a data URL's head must end within it."""

_FILLER = "." * (MAX_PROMPT_CHARACTERS + 1)
"""Makes the stand-in of a long text too long for every field but `inputs`."""

_ASCII = re.compile(rb'(?:[ !#-\[\]-~]++|\\["\\/bfnrt]|\\u00[0-7][0-9a-fA-F])++')
"""The inside of a JSON string, up to an incomplete escape or a character beyond ASCII; neither occurs in base64."""

_HEAD = re.compile(rb"\s*(?:data:[^,]*,)?")


async def read_body(parts: AsyncIterable[bytes], *, max_bytes: int) -> memoryview:
    """Read a body of at most `max_bytes`. `request.body()` would keep a copy as long as the request lives."""
    held, length = reserve(max_bytes), 0
    async for part in parts:
        held[length : length + len(part)] = part
        length += len(part)
    return memoryview(held)[:length]


def parse_large_json(body: memoryview) -> tuple[Any, memoryview | None]:
    """Parse JSON that may hold one long text. Blocks; call it in a thread.

    Returns:
        The value, and the long string's inside as it was sent. In the value, a stand-in replaces the inside. It begins
        like the inside, and is too long for every field but `inputs`. None instead of the inside: no string is long, or
        the long string has a quotation mark in it, as base64 never has.

    Raises:
        BodyTooLargeError: The JSON beside the long string has more than 64 KiB.
        MalformedBodyError: The JSON around the long string is malformed.
        InvalidRequestError: An object has two fields of the same name.
    """
    start, end = _longest_span(body)
    if len(body) - (end - start) > MAX_JSON_BYTES:
        raise _too_large()
    if end - start <= MAX_JSON_BYTES:
        return parse_json(bytes(body)), None
    before, after = bytes(body[:start]), bytes(body[end:])
    marks_before = before.replace(rb"\\", b"").replace(rb"\"", b"").count(b'"')
    if marks_before % 2 == 0:  # the span is between two strings, not in one
        raise _too_large()
    begin = _ASCII.match(bytes(body[start : start + _BEGIN_BYTES]))
    stand_in = (begin[0] if begin else b"") + _FILLER.encode()
    value = parse_json(before + stand_in + after, shortened=True)
    is_whole = not before.endswith(rb"\"") and not after.startswith(b"\\")  # an escaped mark is a part of the string
    return value, body[start:end] if is_whole else None


def unescape(text: memoryview) -> memoryview:
    """Unescape the inside of a JSON string in place. Blocks; call it in a thread.

    Raises:
        InvalidImageError: The text is not ASCII, as base64 is, or not the inside of a JSON string.
    """
    start = length = 0
    while start < len(text):
        whole = _ASCII.match(bytes(text[start : start + PIECE_BYTES]))
        if whole is None:
            raise _not_base64()
        start += whole.end()
        plain = json.loads(b'"%b"' % whole[0]).encode()
        text[length : length + len(plain)] = plain
        length += len(plain)
    return text[:length]


def decode_base64(text: memoryview) -> memoryview:
    """Decode base64 or a data URL in place; white space may surround it. Blocks; call it in a thread.

    Raises:
        InvalidImageError: The text is neither.
    """
    tail = bytes(text[-_BEGIN_BYTES:])
    text = text[: len(text) - len(tail) + len(tail.rstrip())]
    head = _HEAD.match(bytes(text[:_BEGIN_BYTES]))
    text = text[head.end() if head else 0 :]
    if len(text) % 4:  # Python accepts AAAA=
        raise _not_base64()
    length = 0
    for at in range(0, len(text), PIECE_BYTES):
        if length < at // 4 * 3:  # padding ended the file before this piece
            raise _not_base64()
        try:
            piece = base64.b64decode(text[at : at + PIECE_BYTES], validate=True)
        except ValueError as error:
            raise _not_base64() from error
        text[length : length + len(piece)] = piece
        length += len(piece)
    return text[:length]


def _not_base64() -> InvalidImageError:
    return InvalidImageError("The picture is not base64.", param="inputs")


def _too_large() -> BodyTooLargeError:
    return BodyTooLargeError(f"The JSON has more than {MAX_JSON_BYTES} bytes beside the picture.")


def _longest_span(body: memoryview) -> tuple[int, int]:
    """Return the start and the end of the longest part without a quotation mark."""
    marks = [-1]
    for at in range(0, len(body), PIECE_BYTES):
        marks += (at + mark.start() for mark in re.finditer(b'"', body[at : at + PIECE_BYTES]))
        if len(marks) > MAX_JSON_BYTES:
            raise _too_large()
    before, end = max(pairwise([*marks, len(body)]), key=lambda span: span[1] - span[0])
    tail = bytes(body[max(before + 1, end - PIECE_BYTES) : end])
    escape = (len(tail) - len(tail.rstrip(b"\\"))) % 2  # it belongs to the quotation mark
    return before + 1, end - escape
