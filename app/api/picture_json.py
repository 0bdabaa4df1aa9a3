"""JSON with the files of pictures in base64, which is encoded while it is sent, piece by piece.

Python holds the GIL while it encodes base64 or JSON. For ten pictures of 4 MB the event loop would stand still for half
a second; a piece takes milliseconds.
"""

import asyncio
import base64
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

_PIECE_BYTES = 3 << 16
"""Of a file, encoded in one go. A multiple of 3, so that only the last piece is padded."""

Encoded = Callable[[int], str]
"""Returns what stands for the base64 of the file with this number; it may be a part of a longer text."""


class PictureResponse(Response):
    """An answer whose text has the files of pictures in base64.

    `text_of` makes the text, with stand-ins that the files replace.
    """

    def __init__(
        self,
        text_of: Callable[[Encoded], str],
        files: Sequence[bytes],
        *,
        headers: Mapping[str, str],
        media_type: str = "application/json",
    ) -> None:
        mark = secrets.token_hex(16)  # nobody who sends a prompt can guess it
        text = text_of(lambda number: f"{mark}-{number}-")
        parts = re.split(f"{mark}-(\\d+)-", text)
        self._texts = [part.encode() for part in parts[::2]]
        self._files = [files[int(number)] for number in parts[1::2]]
        size = sum(map(len, self._texts)) + sum((len(file) + 2) // 3 * 4 for file in self._files)
        super().__init__(headers={**headers, "Content-Length": str(size)}, media_type=media_type)

    async def __call__(self, _: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in self._pieces():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)  # a fast reader would never make `send` wait
        await send({"type": "http.response.body", "body": b""})

    def _pieces(self) -> Iterator[bytes]:
        yield self._texts[0]
        for file, text in zip(self._files, self._texts[1:], strict=True):
            for at in range(0, len(file), _PIECE_BYTES):
                yield base64.b64encode(file[at : at + _PIECE_BYTES])
            yield text


def as_json(value: Any) -> str:
    """Return a value as compact JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
