"""Cross-origin requests of browsers (CORS): Starlette's middleware, with problem+json for rejected preflights."""

from http import HTTPStatus

from fastapi import Request
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from app.api.errors import problem_response
from app.api.gate.access import ORIGIN_NOT_ALLOWED
from app.errors import ForbiddenOriginError, MethodNotAllowedError, TurboError

METHODS = ("GET", "HEAD", "POST")
"""Methods that pages of allowed origins may use."""


class CorsMiddleware(CORSMiddleware):
    """Answers preflights, and lets pages of allowed origins read responses."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        if scope.get("method") != "OPTIONS" or not {"origin", "access-control-request-method"} <= {*headers}:
            await super().__call__(scope, receive, send)
            return
        response = self.preflight_response(request_headers=headers)
        if response.status_code == HTTPStatus.BAD_REQUEST:  # Starlette rejects it
            kept = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
            error = self._error(headers)
            if isinstance(error, MethodNotAllowedError):
                kept["Allow"] = ", ".join(METHODS)
            response = problem_response(error, Request(scope, receive), headers=kept)
        await response(scope, receive, send)

    def _error(self, headers: Headers) -> TurboError:
        """Return the reason why a preflight is rejected. Every header is allowed, so headers are never the reason."""
        if not self.is_allowed_origin(headers["origin"]):
            return ForbiddenOriginError(ORIGIN_NOT_ALLOWED)
        if headers["access-control-request-method"] not in METHODS:
            return MethodNotAllowedError(f"Pages of other origins may send {', '.join(METHODS)}.")
        return ForbiddenOriginError("Pages of public sites may not use a service in a private network.")
