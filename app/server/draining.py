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
"""Seconds that are left for answers under way, and bodies that trickle in, once nobody is waiting for a picture."""

_log = logging.getLogger(__name__)


class DrainingServer(uvicorn.Server):
    """A uvicorn server that keeps listening while it finishes what it has accepted.

    uvicorn closes its listener at the first signal, which a load balancer sees as refused connections until its next
    probe. Here new requests get 503 and `Connection: close` meanwhile, and probes an answer.
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
            # On h11: httptools, which uvicorn prefers when it is installed, takes headers of any size.
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
        """Start, and let the garbage collector go on: what start-up made stays for good, and is not looked at again."""
        await super().startup(sockets)
        gc.freeze()
        gc.enable()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start to drain at the first signal; stop at once at the second, or when the service is still starting."""
        del frame
        if not self.started:
            # The thread that loads the model cannot be interrupted, and a normal exit would wait for it.
            _log_from_handler(logging.WARNING, "stopped by %s during start", signal.Signals(sig).name)
            exit_now(128 + sig)
        if self._signalled:
            _log_from_handler(logging.WARNING, "second %s: stopping at once", signal.Signals(sig).name)
            exit_now(self.exit_code or 128 + sig)
        self._signalled = True
        self._drain()
        name = signal.Signals(sig).name
        _log_from_handler(logging.INFO, "%s: draining, %d requests in flight", name, self._engine.in_flight)

    def device_lost(self) -> None:
        """End as at a signal, with an exit code that has the process replaced. Called on the event loop."""
        _log.critical("ending the process, to be replaced")
        if not self.started:
            exit_now(DEVICE_LOST)
        self.exit_code = DEVICE_LOST
        self._drain()

    def _drain(self) -> None:
        if self._drain_until is None:
            self._drain_until = time.monotonic() + self._drain_s
        self._engine.drain()

    async def on_tick(self, counter: int) -> bool:
        """Stop when the last accepted request is answered; when the time to drain is over, with an error."""
        if self._drain_until is not None:
            over = time.monotonic() >= self._drain_until
            if not self._engine.in_flight:
                # A lost device is replaced without waiting for clients that read slowly.
                self.should_exit = over or self.exit_code != 0 or not self._answering
            elif over and not self._gave_up:
                _log.error("drain time is over: giving up on %d requests", self._engine.in_flight)
                self._gave_up = True
                self.exit_code = self.exit_code or GAVE_UP
                self._engine.give_up()
        return await super().on_tick(counter)

    @property
    def _answering(self) -> bool:
        """Whether answers are on their way to clients."""
        connections = self.server_state.connections
        return any(isinstance(connection, HttpProtocol) and connection.answering for connection in connections)


def _log_from_handler(level: int, text: str, *facts: object) -> None:
    """Log from a signal's handler, which may have interrupted the writing of another line: then this one is lost."""
    with suppress(RuntimeError):  # Python's complaint of a reentrant call
        _log.log(level, text, *facts)
