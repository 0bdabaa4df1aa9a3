"""What a body may weigh and how long it may take, checked before any of it is parsed; and a client that leaves."""

import asyncio

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import BodyTooLargeError, ClientDisconnectedError, QueueFullError, RequestTimeoutError

MAX_JSON_BYTES = 64 * 1024
"""The longest prompt, with every character escaped, is 24,000 bytes. Parsing JSON blocks the event loop."""

_LARGE_BODIES = 8
"""Bodies of the largest size that may be on their way at once: they take memory or disk before they have a place."""


class BodyMiddleware:
    """Breaks off the reading of a body that is too large, or says so, or takes too long, and of one its client left.

    It raises HTTPExceptions: FastAPI passes them through, and hides any other error of the body's stream behind a 400.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, body_timeout_s: float) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._arriving_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; reading raises inside the app."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit_bytes = self._max_body_bytes if _may_be_picture(scope) else min(MAX_JSON_BYTES, self._max_body_bytes)
        body = _Body(Headers(scope=scope), receive, limit_bytes)
        until: float | None = None

        async def limited_receive() -> Message:
            nonlocal until
            if body.whole:
                return await receive()
            loop = asyncio.get_running_loop()
            until = until or loop.time() + self._body_timeout_s
            before = body.read_bytes
            try:
                async with asyncio.timeout_at(until):
                    return await body.receive()
            except TimeoutError:
                raise HTTPException(
                    RequestTimeoutError.status, f"The body had not arrived within {self._body_timeout_s:g} s."
                ) from None
            finally:
                self._count(body, body.read_bytes - before)

        try:
            await self._app(scope, limited_receive, send)
        finally:
            self._arriving_bytes -= body.counted_bytes

    def _count(self, body: "_Body", received_bytes: int) -> None:
        """Count what is on its way; once a body is whole, the places bound how many there are."""
        counted_bytes = 0 if body.whole else body.counted_bytes + received_bytes
        self._arriving_bytes += counted_bytes - body.counted_bytes
        body.counted_bytes = counted_bytes
        if received_bytes and not body.whole and self._arriving_bytes > _LARGE_BODIES * self._max_body_bytes:
            raise HTTPException(
                QueueFullError.status, "Too many large bodies are on their way already.", headers={"Retry-After": "1"}
            )


def _may_be_picture(scope: Scope) -> bool:
    """Tell whether the body may have a picture in it: forms, and whatever Hugging Face's clients send."""
    is_form = Headers(scope=scope).get("content-type", "").lower().startswith("multipart/")
    return is_form or scope["path"] == "/"


class _Body:
    """One body as it arrives."""

    def __init__(self, headers: Headers, receive: Receive, limit_bytes: int) -> None:
        declared = headers.get("content-length", "")
        self._limit_bytes = limit_bytes
        self._declared_bytes = int(declared) if declared.isdecimal() else 0
        self._receive = receive
        self.read_bytes = 0
        self.counted_bytes = 0
        self.whole = False

    async def receive(self) -> Message:
        """Receive the next part of it, or raise."""
        self._check(self._declared_bytes)
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise HTTPException(ClientDisconnectedError.status, "The client hung up in the middle of its request.")
        self.read_bytes += len(message.get("body", b""))
        self._check(self.read_bytes)
        self.whole = not message.get("more_body", False)
        return message

    def _check(self, size_bytes: int) -> None:
        if size_bytes > self._limit_bytes:
            raise HTTPException(BodyTooLargeError.status, f"The body has more than {self._limit_bytes} bytes.")
