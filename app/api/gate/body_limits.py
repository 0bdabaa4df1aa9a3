"""Limits of size and time for request bodies, applied while a body arrives and before any of it is parsed."""

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import errors
from app.settings import Settings

MAX_JSON_BYTES = 64 * 1024
"""The longest prompt, with every character escaped, is 24,000 bytes. Parsing JSON blocks the event loop."""

_WITH_PICTURES = ("/sdapi/v1/txt2img", "/sdapi/v1/img2img", "/sdapi/v1/png-info", "/mcp")
"""Routes whose JSON may have pictures, beside Hugging Face's `/`."""

_LARGE_BODIES = 8
"""Bodies of the largest size that may arrive at once: they take memory or disk before their requests have a place."""


class BodyMiddleware:
    """Stops reading a body that is too large or too slow, or whose client disconnects: reading raises the error."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        # Received bytes of all bodies that are not complete yet; the queue's places bound the complete ones.
        self._arriving_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "")
        declared_bytes = int(declared) if declared.isdecimal() else 0
        limit_bytes = self._limit_bytes(scope["path"], headers)
        received_bytes = 0
        complete = False
        deadline: float | None = None

        async def receive_within_limits() -> Message:
            nonlocal received_bytes, complete, deadline
            if complete:
                return await receive()
            _check_size(declared_bytes, limit_bytes)
            deadline = deadline or asyncio.get_running_loop().time() + self._settings.body_timeout_s
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                detail = f"The body had not arrived within {self._settings.body_timeout_s:g} s."
                raise errors.RequestTimeoutError(detail) from None
            if message["type"] == "http.disconnect":
                raise errors.ClientDisconnectedError("The client disconnected before its request was complete.")
            part_bytes = len(message.get("body", b""))
            received_bytes += part_bytes
            self._arriving_bytes += part_bytes
            _check_size(received_bytes, limit_bytes)
            complete = not message.get("more_body", False)
            if complete:
                self._arriving_bytes -= received_bytes
            elif part_bytes and self._arriving_bytes > _LARGE_BODIES * self._settings.max_body_bytes:
                raise errors.QueueFullError("Too many large bodies are arriving already.", retry_after_s=1)
            return message

        try:
            await self._app(scope, receive_within_limits, send)
        finally:
            if not complete:
                self._arriving_bytes -= received_bytes

    def _limit_bytes(self, path: str, headers: Headers) -> int:
        """Return a body's limit: larger for forms and for the routes whose JSON may have pictures."""
        max_body_bytes = self._settings.max_body_bytes
        is_form = headers.get("content-type", "").lower().startswith("multipart/")
        return (
            max_body_bytes
            if is_form or path == "/" or path.startswith(_WITH_PICTURES)
            else min(MAX_JSON_BYTES, max_body_bytes)
        )


def _check_size(size_bytes: int, limit_bytes: int) -> None:
    if size_bytes > limit_bytes:
        raise errors.BodyTooLargeError(f"The body has more than {limit_bytes} bytes.")
