"""Connections: uvicorn's HTTP/1.1, with limits for slow, silent and malformed clients.

uvicorn limits the idle time between two requests and the size of an incomplete header, and nothing else. Other
connections would stay open, and use file descriptors that health checks need.
"""

import asyncio
import math
import re
import sys
import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
from fastapi.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from app import errors
from app.api.errors import PROBLEM, SECURITY_HEADERS, problem_body
from app.server.connection_limits import ConnectionLimits

MAX_HEADER_BYTES = 16 * 1024
MAX_HEADER_FIELDS = 100
"""Limits of a request's first line and header; browsers behind proxies send about forty fields."""

_FREE_CHUNKS, _MEAN_CHUNK_BYTES = 1024, 64
"""Chunks of a body that may have any size, and the mean size that further chunks need. Parsing a chunk takes as long as
parsing 100 bytes of JSON, and blocks the event loop."""

_ABSOLUTE_FORM = re.compile(rb"https?://(?P<host>[^/?#]*)", re.IGNORECASE)
"""The beginning of a target that is a whole URI."""

_LINGER_S = 5
"""Seconds that a client may go on sending a body after its response. A client that is cut off at once might never read
the response."""

_SEND_STALL_S = 30
"""Seconds that a response may make no progress."""


class _BoundedConnection(h11.Connection):
    """h11's state of one connection, with limits for headers that arrive complete and for chunks."""

    _chunks = 0
    _chunk_bytes = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._chunk_bytes += len(event.data)
            if self._chunks > _FREE_CHUNKS + self._chunk_bytes // _MEAN_CHUNK_BYTES:
                raise h11.RemoteProtocolError("chunks too small")
        elif isinstance(event, h11.Request):
            self._chunks = self._chunk_bytes = 0
            size_bytes = len(event.target) + sum(len(name) + len(value) for name, value in event.headers)
            if size_bytes > MAX_HEADER_BYTES or len(event.headers) > MAX_HEADER_FIELDS:
                raise h11.RemoteProtocolError("header too large", errors.HeadersTooLargeError.status)
            event = _in_origin_form(event)
        return event


def _in_origin_form(request: h11.Request) -> h11.Request:
    """Return a request for a whole URI as one for its path; the URI's host replaces the Host field.

    Clients of proxies send whole URIs, and a server must accept them (RFC 9112, 3.2.2).
    """
    match = _ABSOLUTE_FORM.match(request.target)
    if match is None:
        return request
    host, target = match["host"], request.target[match.end() :].partition(b"#")[0]
    if not host or b"@" in host:
        raise h11.RemoteProtocolError("The request's target has no host, or a user's name in it.")
    return h11.Request(
        method=request.method,
        target=target if target.startswith(b"/") else b"/" + target,
        headers=[(b"host", host), *((name, value) for name, value in request.headers if name != b"host")],
        http_version=request.http_version,
    )


class _Transport:
    """A transport with another `close`."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._transport = transport
        self.close = close

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class HttpProtocol(H11Protocol):
    """One connection."""

    def __init__(self, *args: Any, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = _BoundedConnection(h11.SERVER, MAX_HEADER_BYTES)
        self._limits = limits
        self._receive_limit: tuple[float, Callable[[], None]] | None = None
        self._receive_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._lingering = False

    @property
    def answering(self) -> bool:
        """Whether a request has arrived completely and its response has not been sent completely."""
        arrived = self.conn.their_state in (h11.DONE, h11.MUST_CLOSE)
        unanswered = self.conn.our_state in (h11.SEND_RESPONSE, h11.SEND_BODY)
        return (arrived and unanswered) or self.transport.get_write_buffer_size() > 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        self._close_now = transport.close
        transport.set_write_buffer_limits(high=0)  # so that the stall timer covers a response's last bytes too
        super().connection_made(_Transport(transport, self._close))  # type: ignore[arg-type] # it is one, by delegation
        self._limits.opened(self.transport)
        self._review()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn forgets its timer when the connection was reset
        self._limits.closed(self.transport)
        for timer in (self._receive_timer, self._send_timer):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        if not self._lingering:
            super().data_received(data)
            self._review()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._review()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._check_progress()
        self._review()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._send_timer is not None:
            self._send_timer.cancel()
        self._review()

    def send_400_response(self, msg: str) -> None:
        # uvicorn calls this where it handles h11's error.
        if getattr(sys.exception(), "error_status_hint", 0) == errors.HeadersTooLargeError.status:
            limits = f"{MAX_HEADER_BYTES} bytes and {MAX_HEADER_FIELDS} fields"
            self._reject(errors.HeadersTooLargeError(f"A request's header may have at most {limits}."))
        else:
            self._reject(errors.MalformedRequestError(msg))

    def _close(self) -> None:
        """Close the connection. While the client sends a body, close only our side and discard what arrives."""
        if self._lingering or self.conn.their_state is not h11.SEND_BODY or self.transport.is_closing():
            self._close_now()
            return
        self._lingering = True
        self.transport.write_eof()
        self._review()

    def _review(self) -> None:
        """Set the timer and the limits as the connection's state requires."""
        if self.transport.is_closing():
            return
        limit: tuple[float, Callable[[], None]] | None = None
        state = self.conn.their_state
        stalled = state in (h11.IDLE, h11.SEND_BODY) or self.flow.write_paused
        self._limits.review(self.transport, stalled=stalled)
        # Between two requests uvicorn's own timer runs, until the first byte of the next request arrives.
        if state is h11.IDLE and self.timeout_keep_alive_task is None:
            limit = (self._limits.header_timeout_s, self._on_header_timeout)
        elif self._lingering or (state is h11.SEND_BODY and self.conn.our_state is h11.DONE):
            limit = (_LINGER_S, self._close_now)
        if limit == self._receive_limit:
            return
        self._receive_limit = limit
        if self._receive_timer is not None:
            self._receive_timer.cancel()
        if limit is not None:
            self._receive_timer = self.loop.call_later(*limit)

    def _on_header_timeout(self) -> None:
        if self.conn.trailing_data[0]:  # part of a header has arrived
            detail = f"The header had not arrived within {self._limits.header_timeout_s:g} s."
            self._reject(errors.RequestTimeoutError(detail))
        else:
            self.transport.close()

    def _check_progress(self, unsent_before_bytes: float = math.inf) -> None:
        """Abort the connection if its client has read nothing since the last check; else check again later."""
        unsent_bytes = self.transport.get_write_buffer_size()
        if unsent_bytes >= unsent_before_bytes:
            self.transport.abort()  # close() would wait for the client
        else:
            self._send_timer = self.loop.call_later(_SEND_STALL_S, self._check_progress, unsent_bytes)

    def _reject(self, error: errors.TurboError) -> None:
        """Respond with problem+json, unless a response has begun, and close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._limits.count_error(error.code)
            request_id = uuid.uuid4().hex
            headers = {"X-Request-ID": request_id, "Cache-Control": "no-store", "Connection": "close"}
            response = JSONResponse(
                problem_body(error, request_id=request_id), error.status, headers | SECURITY_HEADERS, PROBLEM
            )
            reason = HTTPStatus(error.status).phrase.encode()
            for event in (
                h11.Response(status_code=error.status, headers=response.raw_headers, reason=reason),
                h11.Data(data=bytes(response.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True  # the app may stop, and cannot respond any more
            cycle.message_event.set()
        self.transport.close()
