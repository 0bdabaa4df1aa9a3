"""What a body may weigh, checked before any of it is parsed; and a client that leaves in the middle of one."""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import BodyTooLargeError, ClientDisconnectedError

MAX_JSON_BYTES = 64 * 1024
"""The longest prompt, with every character escaped, is 24,000 bytes. Parsing JSON blocks the event loop."""


class BodyMiddleware:
    """Breaks off the reading of a body that is, or says that it will be, too large, and of one that its client left.

    It raises HTTPExceptions: FastAPI passes them through, and hides any other error of the body's stream behind a 400.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; reading raises inside the app."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        is_form = headers.get("content-type", "").lower().startswith("multipart/")
        limit = self._max_body_bytes if is_form else min(MAX_JSON_BYTES, self._max_body_bytes)
        declared = headers.get("content-length", "")
        size_bytes = int(declared) if declared.isdecimal() else 0
        read_bytes, whole = 0, False

        async def limited_receive() -> Message:
            nonlocal read_bytes, whole
            _check_size(size_bytes, limit)
            message = await receive()
            if message["type"] == "http.disconnect" and not whole:
                raise HTTPException(ClientDisconnectedError.status, "The client hung up in the middle of its request.")
            read_bytes += len(message.get("body", b""))
            _check_size(read_bytes, limit)
            whole = not message.get("more_body", False)
            return message

        await self._app(scope, limited_receive, send)


def _check_size(size_bytes: int, limit_bytes: int) -> None:
    if size_bytes > limit_bytes:
        raise HTTPException(BodyTooLargeError.status, f"The body has more than {limit_bytes} bytes.")
