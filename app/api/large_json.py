"""A JSON body of megabytes with pictures in base64: held once, and searched and decoded in place, piece by piece.

Python holds the GIL while it copies or searches memory. For 30 MiB the event loop would stand still for up to 30 ms.
"""

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterable, Callable
from itertools import pairwise
from typing import Any

from app.api.gate.body_limits import MAX_JSON_BYTES
from app.api.json_body import FILLER, check_not_blank, parse_json
from app.errors import BodyTooLargeError, InvalidImageError
from app.images.memory import reserve

PIECE_BYTES = 1 << 17
"""Handled in one call, which takes 3 ms at most, for text of escapes. A multiple of 4, the length of a base64 group."""

_LONG_BYTES = 24 * 1024
"""A text beyond this is no prompt: the longest prompt, with every character escaped, has 24,000 bytes."""

_BEGIN_BYTES = 1024
"""Of a long text, as much as shows whether it is a picture; a data URL's head must end within it."""

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


Texts = dict[str, memoryview]
"""Long texts of a JSON body by their stand-ins: the inside of the JSON string, as it was sent."""


async def read_large_json(parts: AsyncIterable[bytes], *, max_bytes: int, required: str) -> tuple[Any, Texts]:
    """Read a JSON body of at most `max_bytes`; the contract is `parse_held`."""
    return await parse_held([await read_body(parts, max_bytes=max_bytes)], required=required)


async def parse_held(held: list[memoryview], *, required: str) -> tuple[Any, Texts]:
    """Return the value of the JSON body that `held` has, and its long texts; see `parse_large_json`.

    The body is taken out of the list, so that it is not kept in memory longer than its texts. `required` is a field
    that the body must have. Large JSON is parsed in asyncio's thread pool: the codec threads may be busy for longer
    than a request may wait.

    Raises:
        TurboError: As `read_json` and `parse_large_json`.
    """
    body = held.pop()
    if len(body) > MAX_JSON_BYTES:
        return await asyncio.to_thread(parse_large_json, body)
    whole = bytes(body)
    check_not_blank(whole, required)
    return parse_json(whole), {}


def take_picture(text: str, texts: Texts, *, param: str) -> Callable[[], memoryview]:
    """Return a function that decodes a picture in base64 or a data URL. That blocks, and works once.

    `text` is the field's value, or the stand-in of a text of `texts`, which is taken out. `param` is the field.
    """
    held = [texts.pop(text)] if text in texts else []

    def decode() -> memoryview:
        if held:
            return decode_base64(unescape(held.pop(), param=param), param=param)
        return decode_base64(memoryview(bytearray(text.strip().encode("ascii", "replace"))), param=param)

    return decode


def parse_large_json(body: memoryview) -> tuple[Any, Texts]:
    """Parse JSON that may hold long texts. Blocks; call it in a thread.

    Returns:
        The value, and its long texts. In the value, a stand-in replaces each. It begins like the text, and is too long
        for every field but a picture's. A long text with a quotation mark in it, as base64 never has, is left out.

    Raises:
        BodyTooLargeError: The JSON beside the long texts has more than 64 KiB.
        MalformedBodyError: The JSON around the long texts is malformed.
        InvalidRequestError: An object has two fields of the same name.
    """
    spans = _long_spans(body)
    if len(body) - sum(end - start for start, end in spans) > MAX_JSON_BYTES:
        raise _too_large()
    ends = [0, *(end for _, end in spans)]
    starts = [*(start for start, _ in spans), len(body)]
    between = [bytes(body[end:start]) for end, start in zip(ends, starts, strict=True)]
    shortened, marks, texts = between[0], 0, Texts()
    for number, (start, end) in enumerate(spans):
        before, after = between[number], between[number + 1]
        marks += before.replace(rb"\\", b"").replace(rb"\"", b"").count(b'"')
        if marks % 2 == 0:  # the span is between two strings, not in one
            raise _too_large()
        begin = _ASCII.match(bytes(body[start : start + _BEGIN_BYTES]))
        stand_in = (begin[0] if begin else b"") + f"{FILLER}{number}".encode()
        shortened += stand_in + after
        if not before.endswith(rb"\"") and not after.startswith(b"\\"):  # an escaped mark is a part of the string
            texts[json.loads(b'"%b"' % stand_in)] = body[start:end]
    return parse_json(shortened, shortened=bool(spans)), texts


def unescape(text: memoryview, *, param: str = "inputs") -> memoryview:
    """Unescape the inside of a JSON string in place. Blocks; call it in a thread.

    Raises:
        InvalidImageError: The text is not ASCII, as base64 is, or not the inside of a JSON string.
    """
    start = length = 0
    while start < len(text):
        whole = _ASCII.match(bytes(text[start : start + PIECE_BYTES]))
        if whole is None:
            raise _not_base64(param)
        start += whole.end()
        plain = json.loads(b'"%b"' % whole[0]).encode()
        text[length : length + len(plain)] = plain
        length += len(plain)
    return text[:length]


def decode_base64(text: memoryview, *, param: str = "inputs") -> memoryview:
    """Decode base64 or a data URL in place; white space may surround it. Blocks; call it in a thread.

    Raises:
        InvalidImageError: The text is neither.
    """
    tail = bytes(text[-_BEGIN_BYTES:])
    text = text[: len(text) - len(tail) + len(tail.rstrip())]
    head = _HEAD.match(bytes(text[:_BEGIN_BYTES]))
    text = text[head.end() if head else 0 :]
    if len(text) % 4:  # Python accepts AAAA=
        raise _not_base64(param)
    length = 0
    for at in range(0, len(text), PIECE_BYTES):
        if length < at // 4 * 3:  # padding ended the file before this piece
            raise _not_base64(param)
        try:
            piece = base64.b64decode(text[at : at + PIECE_BYTES], validate=True)
        except ValueError as error:
            raise _not_base64(param) from error
        text[length : length + len(piece)] = piece
        length += len(piece)
    return text[:length]


def _not_base64(param: str) -> InvalidImageError:
    return InvalidImageError("The picture is not base64.", param=param)


def _too_large() -> BodyTooLargeError:
    return BodyTooLargeError(f"The JSON has more than {MAX_JSON_BYTES} bytes beside its pictures.")


def _long_spans(body: memoryview) -> list[tuple[int, int]]:
    """Return the start and the end of each long part without a quotation mark."""
    marks = [-1]
    for at in range(0, len(body), PIECE_BYTES):
        marks += (at + mark.start() for mark in re.finditer(b'"', body[at : at + PIECE_BYTES]))
        if len(marks) > MAX_JSON_BYTES:
            raise _too_large()
    spans = []
    for before, end in pairwise([*marks, len(body)]):
        if end - before > _LONG_BYTES:
            tail = bytes(body[max(before + 1, end - PIECE_BYTES) : end])
            escape = (len(tail) - len(tail.rstrip(b"\\"))) % 2  # it belongs to the quotation mark
            spans.append((before + 1, end - escape))
    return spans
