"""The outermost layer: request ids, observers, the headers of every response, and errors that nothing else caught."""

import asyncio
import re
import string
import uuid
from urllib.parse import quote

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.context import ApiContext
from app.api.errors import SECURITY_HEADERS, problem_response
from app.errors import DrainingError, TurboError
from app.observability.request_observer import RequestObserver

_log = structlog.stdlib.get_logger("app.access")

_SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_QUIET_PATHS = ("/healthz/", "/metrics")


class EdgeMiddleware:
    """Wraps the whole app. Sets `request.state.request_id` and `request.state.observer`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context: ApiContext = scope["app"].state.context
        sent = Headers(scope=scope).get("x-request-id", "")
        request_id = sent if _SAFE_REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
        observer = RequestObserver(context.observability, scope, quiet=scope["path"].startswith(_QUIET_PATHS))
        scope.setdefault("state", {}).update(request_id=request_id, observer=observer)
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])  # the SDK for MCP sends members of HTTPStatus
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers.update(observer.headers)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                if context.engine.admission.draining:
                    headers["Connection"] = "close"  # the client's next request should reach another instance
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except asyncio.CancelledError:  # the server stops before the request is complete
            if status:
                raise
            stopped = DrainingError("The service stopped before the request was complete.", retry_after_s=1)
            await problem_response(stopped, Request(scope, receive))(scope, receive, send_with_headers)
        except Exception:  # at the edge of the app, any other error becomes a 500 without its traceback
            _log.exception("request_crashed", request_id=request_id, **observer.ids)
            observer.error_code = TurboError.code
            if status:
                raise
            error = TurboError("The service failed on this request.")
            await problem_response(error, Request(scope, receive))(scope, receive, send_with_headers)
        finally:
            observer.end(
                method=scope["method"],
                path=quote(scope["path"], safe=string.punctuation),  # a terminal would execute control characters
                route=getattr(scope.get("route"), "path", None),
                status=status,
                request_id=request_id,
            )
