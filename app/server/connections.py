"""Connections: uvicorn's HTTP/1.1, made to outlive clients that are slow, silent, greedy or no HTTP clients at all.

uvicorn bounds how long a connection may idle between two requests, and nothing else: a connection that never sends a
request stays open for ever, as does one whose client does not read its answer, and each takes a file descriptor from
the probes. What is bounded here: a header's size and fields, the time for it to arrive, what is still sent of a body
that nobody reads, the time without progress of an answer, and the number of connections.
"""

import asyncio
import json
import re
import sys
import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from app.api.errors import PROBLEM, SECURITY_HEADERS, problem_body
from app.errors import HeadersTooLargeError, MalformedRequestError, RequestTimeoutError, TurboError
from app.server.connection_limits import ConnectionLimits

MAX_HEADER_BYTES = 16 * 1024
MAX_HEADER_FIELDS = 100
"""What a request's line and header may have; browsers behind proxies send some forty fields."""

_FREE_CHUNKS, _MEAN_CHUNK_BYTES = 1024, 64
"""Chunks that a body may come in, and how large those above that number must be on average: parsing one takes as long
as a hundred bytes of JSON, and all that have arrived are parsed before anybody else has a turn."""

_ABSOLUTE_FORM = re.compile(rb"https?://(?P<host>[^/?#]*)", re.IGNORECASE)
"""How the target of a request begins that names the whole URI."""

_LINGER_S = 5
"""Seconds that a client may go on sending a body after its answer: cut off at once, it might never read the answer."""

_SEND_STALL_S = 30
"""Seconds that an answer may make no progress at all."""


class _BoundedConnection(h11.Connection):
    """h11's state of one connection; refuses headers that are too large also when they arrive all at once.

    And bodies in chunks that are too small.
    """

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
                raise h11.RemoteProtocolError("header too large", error_status_hint=HeadersTooLargeError.status)
            event = _in_origin_form(event)
        return event


def _in_origin_form(request: h11.Request) -> h11.Request:
    """Return a request to an absolute URI as one to its path; the URI's host takes the place of the Host field's.

    Clients of proxies send that form, and a server must take it (RFC 9112, 3.2.2).
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
    """A transport whose `close` is somebody else's; all else is its own."""

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
        self._header_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._unsent_bytes = 0
        self._lingering = False
        self._close_now: Callable[[], None] = lambda: None

    @property
    def answering(self) -> bool:
        """Whether a request has arrived whole and its answer is not out."""
        arrived = self.conn.their_state in (h11.DONE, h11.MUST_CLOSE)
        answered = self.conn.our_state not in (h11.SEND_RESPONSE, h11.SEND_BODY)
        return (arrived and not answered) or self.transport.get_write_buffer_size() > 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        """Start to wait for a request."""
        self._close_now = transport.close
        transport.set_write_buffer_limits(high=0)  # whatever is unsent is waited for, be it the last byte
        super().connection_made(_Transport(transport, self._close))  # type: ignore[arg-type] # it is one, by delegation
        self._limits.opened()
        self._review()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        super().connection_lost(exc)
        self._limits.closed(self)
        self._unset_keepalive_if_required()
        for timer in (self._header_timer, self._linger_timer, self._send_timer):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Take what the client sends."""
        if self._lingering:
            return
        super().data_received(data)
        self._review()

    def on_response_complete(self) -> None:
        """Go on to the next request, if the client may send one."""
        super().on_response_complete()
        self._review()

    def pause_writing(self) -> None:
        """Wait for a client that reads slowly, as long as it reads."""
        super().pause_writing()
        self._unsent_bytes = self.transport.get_write_buffer_size()
        self._send_timer = self.loop.call_later(_SEND_STALL_S, self._on_send_stall)
        self._review()

    def resume_writing(self) -> None:
        """Go on: the client has read all, as far as can be seen from here."""
        super().resume_writing()
        if self._send_timer is not None:
            self._send_timer.cancel()
        self._review()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or too much of it; called where h11's error is handled."""
        if getattr(sys.exception(), "error_status_hint", 0) == HeadersTooLargeError.status:
            self._refuse(
                HeadersTooLargeError(
                    f"A request's header may have {MAX_HEADER_BYTES} bytes and {MAX_HEADER_FIELDS} fields at most."
                )
            )
        else:
            self._refuse(MalformedRequestError(msg))

    def _close(self) -> None:
        """Close the connection; to a client that is still sending say first that nothing more comes, and read on."""
        if self._lingering or self.conn.their_state is not h11.SEND_BODY or self.transport.is_closing():
            self._close_now()
            return
        self._lingering = True
        self.transport.write_eof()
        self._review()

    def _review(self) -> None:
        """Look at where the connection stands, and set the clocks and the limits accordingly."""
        if self.transport.is_closing():
            return
        state = self.conn.their_state
        self._limits.review(self, awaited=state in (h11.IDLE, h11.SEND_BODY) or self.flow.write_paused)
        # Between two requests uvicorn's own clock runs, until the first byte of the next comes.
        idle = state is h11.IDLE and self.timeout_keep_alive_task is None
        unread = self._lingering or (state is h11.SEND_BODY and self.conn.our_state is h11.DONE)
        self._header_timer = self._clock(
            self._header_timer, self._limits.header_timeout_s, self._on_header_timeout, running=idle
        )
        self._linger_timer = self._clock(self._linger_timer, _LINGER_S, self._close_now, running=unread)

    def _clock(
        self, timer: asyncio.TimerHandle | None, after_s: float, then: Callable[[], None], *, running: bool
    ) -> asyncio.TimerHandle | None:
        """Start a timer that should run and does not; stop one that does and should not."""
        if running:
            return timer or self.loop.call_later(after_s, then)
        if timer is not None:
            timer.cancel()
        return None

    def _on_header_timeout(self) -> None:
        if self.conn.trailing_data[0]:  # part of a header is there
            self._refuse(RequestTimeoutError(f"The header had not arrived within {self._limits.header_timeout_s:g} s."))
        else:
            self.transport.close()

    def _on_send_stall(self) -> None:
        unsent_bytes = self.transport.get_write_buffer_size()
        if unsent_bytes >= self._unsent_bytes:
            self.transport.abort()  # a close would wait for the client
            return
        self._unsent_bytes = unsent_bytes
        self._send_timer = self.loop.call_later(_SEND_STALL_S, self._on_send_stall)

    def _refuse(self, error: TurboError) -> None:
        """Answer with problem+json, if no answer has begun, and close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._limits.count_error(error.code)
            request_id, reason = uuid.uuid4().hex, HTTPStatus(error.status).phrase.encode()
            body = json.dumps(problem_body(error, request_id=request_id)).encode()
            headers = [
                (b"Content-Type", PROBLEM.encode()),
                (b"Content-Length", str(len(body)).encode()),
                (b"X-Request-ID", request_id.encode()),
                (b"Cache-Control", b"no-store"),
                (b"Connection", b"close"),
                *((name.encode(), value.encode()) for name, value in SECURITY_HEADERS.items()),
            ]
            for event in (
                h11.Response(status_code=error.status, headers=headers, reason=reason),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        cycle: RequestResponseCycle | None = getattr(self, "cycle", None)  # None before the first request
        if cycle is not None and not cycle.response_complete:  # whoever works at an answer may stop
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()
