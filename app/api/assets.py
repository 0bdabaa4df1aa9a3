"""Static files of pages."""

from collections.abc import MutableMapping
from typing import Any

from fastapi import Response
from fastapi.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send


class Assets(StaticFiles):
    """Files that are small, and so are sent as a whole: a server may ignore a Range field (RFC 9110, 14.2).

    Starlette answers a range that it cannot serve in plain text, where every other error has a problem's body.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        headers = [(name, value) for name, value in scope["headers"] if name not in (b"range", b"if-range")]
        whole: MutableMapping[str, Any] = {**scope, "headers": headers}
        await super().__call__(whole, receive, send)

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Answer with a file, or that it has not changed."""
        response = super().file_response(*args, **kwargs)
        response.headers["Accept-Ranges"] = "none"
        return response
