"""A uvicorn server that drains while its port stays open."""

import gc
import logging
import signal
import socket
import time
from contextlib import suppress
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app.api.context import ApiContext
from app.server.connection_limits import BACKLOG, ConnectionLimits, reserve_descriptors
from app.server.connections import HttpProtocol
from app.server.process import DEVICE_LOST, GAVE_UP, exit_now
from app.settings import Settings, split_list

LAST_BYTES_S = 5
"""Seconds for the rest of responses and slow bodies, after the last picture is made."""

_log = logging.getLogger(__name__)


class DrainingServer(uvicorn.Server):
    """A uvicorn server that keeps listening while it finishes the requests that it has accepted.

    uvicorn closes its listener at the first signal, and a load balancer's connections fail until its next health check.
    This server rejects new requests with 503 and `Connection: close`, and answers health checks.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        context: ApiContext = app.state.context
        limits = ConnectionLimits(
            header_timeout_s=settings.header_timeout_s,
            max_connections=reserve_descriptors(settings.max_connections),
            count_error=lambda code: context.observability.metrics.errors.labels(code).inc(),
        )
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            # h11, because httptools, which uvicorn would prefer, accepts headers of any size.
            http=partial(HttpProtocol, limits=limits),  # type: ignore[arg-type] # called with keywords, as a class is
            ws="none",
            backlog=BACKLOG,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=split_list(settings.trusted_proxies),
            timeout_graceful_shutdown=LAST_BYTES_S,
        )
        super().__init__(config)
        self._engine = context.engine
        self._drain_s = settings.drain_s
        self._drain_until: float | None = None
        self._gave_up = False
        self._signalled = False
        self.exit_code = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        gc.freeze()  # objects of the start-up stay for ever, so collections need not visit them
        gc.enable()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal. At the second, or while the service is starting, end the process at once."""
        del frame
        name = signal.Signals(sig).name
        if not self.started:
            # A normal exit would wait for the thread that loads the model, which cannot be interrupted.
            _log_from_handler(logging.WARNING, "stopped by %s during start", name)
            exit_now(128 + sig)
        if self._signalled:
            _log_from_handler(logging.WARNING, "second %s: stopping at once", name)
            exit_now(self.exit_code or 128 + sig)
        self._signalled = True
        self._drain()
        _log_from_handler(logging.INFO, "%s: draining, %d requests in flight", name, self._engine.admission.in_flight)

    def device_lost(self) -> None:
        """Drain as at a signal, and end with the exit code of a lost device. Called on the event loop."""
        _log.critical("ending the process because its device is lost")
        if not self.started:
            exit_now(DEVICE_LOST)
        self.exit_code = DEVICE_LOST
        self._drain()

    def _drain(self) -> None:
        if self._drain_until is None:
            self._drain_until = time.monotonic() + self._drain_s
        self._engine.admission.drain()

    async def on_tick(self, counter: int) -> bool:
        """Stop when all accepted requests are answered. When the drain time is over, reject the rest and stop."""
        if self._drain_until is not None:
            over = time.monotonic() >= self._drain_until
            if not self._engine.admission.in_flight:
                # After a loss of the device, do not wait for clients that read slowly.
                connections = self.server_state.connections
                answering = any(isinstance(one, HttpProtocol) and one.answering for one in connections)
                self.should_exit = over or self.exit_code != 0 or not answering
            elif over and not self._gave_up:
                _log.error("drain time is over: giving up on %d requests", self._engine.admission.in_flight)
                self._gave_up = True
                self.exit_code = self.exit_code or GAVE_UP
                self._engine.admission.give_up()
        return await super().on_tick(counter)


def _log_from_handler(level: int, text: str, *facts: object) -> None:
    """Log from a signal handler. If the signal interrupted the writing of another line, this line is lost."""
    with suppress(RuntimeError):  # a reentrant call
        _log.log(level, text, *facts)
