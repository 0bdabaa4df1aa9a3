"""What a request may bring: the size of its body, and its type. Checked before any of it is parsed."""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimitMiddleware:
    """Breaks off the reading of a body that is, or says that it will be, over the limit."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; reading too large a body raises a 413 inside the app."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        declared_bytes = int(declared) if declared.isdecimal() else 0
        read_bytes = 0

        async def limited_receive() -> Message:
            nonlocal read_bytes
            self._check(declared_bytes)
            message = await receive()
            read_bytes += len(message.get("body", b""))
            self._check(read_bytes)
            return message

        await self._app(scope, limited_receive, send)

    def _check(self, size_bytes: int) -> None:
        if size_bytes > self._max_body_bytes:
            # FastAPI passes an HTTPException of the body's stream through, and hides any other behind a 400.
            raise HTTPException(413, f"The body has more than {self._max_body_bytes} bytes.")
