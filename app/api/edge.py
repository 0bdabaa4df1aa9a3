"""The outermost layer: a request's id, its one log line, its count, and the last catch before a connection breaks."""

import asyncio
import re
import time
import uuid
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.context import ApiContext
from app.api.error_handlers import SECURITY_HEADERS, problem_response
from app.errors import DrainingError, TurboError
from app.telemetry import get_logger
from app.tracing import Trace

_log = get_logger("app.access")

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_PRINTED = "".join(chr(code) for code in range(0x21, 0x7F))
_QUIET_PATHS = ("/healthz/", "/metrics")


class EdgeMiddleware:
    """Wraps the whole app. Handlers add to the log line through `request.state.log`, a dict."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context: ApiContext = scope["app"].state.context
        request_id = _request_id(Headers(scope=scope).get("x-request-id"))
        facts: dict[str, Any] = {}
        quiet = scope["path"].startswith(_QUIET_PATHS)
        trace = Trace() if quiet else context.tracing.begin(scope)
        scope.setdefault("state", {}).update(request_id=request_id, log=facts, trace=trace)
        started = time.monotonic()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers.update(trace.headers)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                if context.engine.draining:
                    headers["Connection"] = "close"  # the next request is another instance's
            await send(message)

        context.metrics.requests_in_progress.inc(not quiet)
        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:  # the server stops, and this request has not even arrived whole
            if status:
                raise
            stopped = DrainingError("The service stopped before the request had arrived.", retry_after_s=1)
            await problem_response(stopped, Request(scope, receive))(scope, receive, send_with_id)
        except Exception:  # the edge: whatever escaped becomes a 500 without its traceback
            _log.exception("request_crashed", request_id=request_id, **trace.ids)
            scope["state"]["error_code"] = TurboError.code
            if status:
                raise
            error = TurboError("The service failed on this request.")
            await problem_response(error, Request(scope, receive))(scope, receive, send_with_id)
        finally:
            context.metrics.requests_in_progress.dec(not quiet)
            self._record(scope, status, time.monotonic() - started, quiet=quiet)

    def _record(self, scope: Scope, status: int, duration_s: float, *, quiet: bool) -> None:
        context: ApiContext = scope["app"].state.context
        request_id, facts, trace = (scope["state"][name] for name in ("request_id", "log", "trace"))
        route = getattr(scope.get("route"), "path", None)
        context.metrics.record_request(
            method=scope["method"], route=route or "unmatched", status=status, duration_s=duration_s
        )
        level = "debug" if quiet and status < 400 else "info"  # noqa: PLR2004
        getattr(_log, level)(
            "request",
            request_id=request_id,
            method=scope["method"],
            path=quote(scope["path"], safe=_PRINTED),  # a terminal would do as control characters say
            status=status,
            duration_s=round(duration_s, 4),
            **facts,
            **trace.ids,
        )
        trace.end(
            route=route, status=status, error_code=scope["state"].get("error_code"), request_id=request_id, facts=facts
        )


def _request_id(sent: str | None) -> str:
    """Keep an id that is safe to log and to send back; make one otherwise."""
    return sent if sent and _SANE_REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
