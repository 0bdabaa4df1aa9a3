"""Cross-origin requests of browsers (CORS): Starlette's middleware, whose refusals have the one error body."""

from fastapi import Request
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from app.api.errors import problem_response
from app.api.gate.access import NOT_ALLOWED
from app.errors import ForbiddenOriginError, MethodNotAllowedError, TurboError

METHODS = ("GET", "HEAD", "POST")
"""Methods that pages of allowed origins may use."""

_REFUSED = 400
"""Status of a preflight that Starlette refuses."""


class CorsMiddleware(CORSMiddleware):
    """Answers preflights of browsers, and lets pages of allowed origins read the answers to their requests."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; a preflight that is refused gets problem+json."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        if scope.get("method") != "OPTIONS" or not {"origin", "access-control-request-method"} <= {*headers}:
            await super().__call__(scope, receive, send)
            return
        response = self.preflight_response(request_headers=headers)
        if response.status_code == _REFUSED:
            said = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
            error = self._error(headers)
            if isinstance(error, MethodNotAllowedError):
                said["Allow"] = ", ".join(METHODS)
            response = problem_response(error, Request(scope, receive), headers=said)
        await response(scope, receive, send)

    def _error(self, headers: Headers) -> TurboError:
        """Say why a preflight is refused; any header may be sent, so headers are no reason."""
        if not self.is_allowed_origin(headers["origin"]):
            return ForbiddenOriginError(NOT_ALLOWED)
        if headers["access-control-request-method"] not in METHODS:
            return MethodNotAllowedError(f"Pages of other origins may send {', '.join(METHODS)}.")
        return ForbiddenOriginError("Pages of public sites may not ask a service in a private network.")
