"""The server: uvicorn, made to drain in the open, and to end when it has to."""

import errno
import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import NoReturn, Protocol

import uvicorn
from fastapi import FastAPI

from app.api.context import ApiContext
from app.connections import ConnectionLimits, HttpProtocol
from app.errors import AddressError
from app.settings import Settings, split_list

_log = logging.getLogger(__name__)

START_FAILED = 3
"""Exit code of a start that failed; uvicorn's own."""

_GAVE_UP = 1
_DEVICE_LOST = 4
_LAST_BYTES_S = 5
"""Seconds that are left for answers under way, and bodies that trickle in, once nobody is waiting for a picture."""

_OTHER_DESCRIPTORS = 256
"""Open files that are no connections: libraries, logs, and large bodies, which lie on the disk."""

_BACKLOG = 512
"""Connections that the system keeps until they are accepted, and as many are accepted at once."""

_DESCRIPTORS_OF_A_FLOOD = 4 * _BACKLOG
"""Connections that may have been accepted before those are closed that have to make room for them."""

_FEWEST_CONNECTIONS = 16

_DESCRIPTORS_PER_CONNECTION = 2
"""Its own, and that of the file that it is sent."""

_SWITCH_INTERVAL_S = 0.0005
"""Seconds after which a thread in Python code gives way to the event loop; Python's default is ten times that."""


class DrainingServer(uvicorn.Server):
    """A uvicorn server that keeps listening while it finishes what it has accepted.

    uvicorn closes its listener at the first signal, which a load balancer sees as refused connections until its next
    probe. Here new requests get 503 and `Connection: close` meanwhile, and probes an answer.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        context: ApiContext = app.state.context
        limits = ConnectionLimits(
            header_timeout_s=settings.header_timeout_s,
            max_connections=_reserve_descriptors(settings.max_connections),
            count_error=lambda code: context.metrics.errors.labels(code).inc(),
        )
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            # On h11: httptools, which uvicorn prefers when it is installed, takes headers of any size.
            http=partial(HttpProtocol, limits=limits),  # type: ignore[arg-type] # called with keywords, as a class is
            ws="none",
            backlog=_BACKLOG,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=split_list(settings.trusted_proxies),
            timeout_graceful_shutdown=_LAST_BYTES_S,
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
            exit_now(_DEVICE_LOST)
        self.exit_code = _DEVICE_LOST
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
                self.exit_code = self.exit_code or _GAVE_UP
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


def _reserve_descriptors(max_connections: int) -> int:
    """Raise the process's limit of open files as far as the connections need it, and return how many it has room for.

    A process without descriptors accepts nobody, not the probes either.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = _OTHER_DESCRIPTORS + _DESCRIPTORS_OF_A_FLOOD
    wanted = max_connections * _DESCRIPTORS_PER_CONNECTION + others
    if hard != resource.RLIM_INFINITY and wanted > hard:
        max_connections = max(_FEWEST_CONNECTIONS, (hard - others) // _DESCRIPTORS_PER_CONNECTION)
        _log.warning("open files are limited to %d, so TURBO_MAX_CONNECTIONS is %d", hard, max_connections)
        wanted = hard
    if soft != resource.RLIM_INFINITY and wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max_connections


def exit_now(code: int) -> NoReturn:
    """End the process without joining the device thread, which may be in a call for minutes or for ever."""
    logging.shutdown()
    os._exit(code)


def check_address(host: str, port: int) -> None:
    """Check that the service can listen there, before gigabytes are loaded; the port stays closed until they are.

    Raises:
        AddressError: The port is taken or not this user's, or the host is not this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in found:
            try:
                listener = socket.socket(family, kind, protocol)
            except OSError:  # this kernel has no IPv6, say: asyncio goes on without
                continue
            with listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind(address)
    except UnicodeError as error:
        remedy = "Set TURBO_HOST to an address or a name of this machine."
        raise AddressError(f"{host}:{port}: It is no host's name.", remedy=remedy) from error
    except OSError as error:
        remedies = {
            errno.EADDRINUSE: "Set TURBO_PORT, or stop what listens there.",
            errno.EACCES: "Set TURBO_PORT to one that this user may listen on, such as 8000.",
        }
        remedy = remedies.get(error.errno or 0, "Set TURBO_HOST to an address of this machine.")
        raise AddressError(f"{host}:{port}: {error.strerror or error}.", remedy=remedy) from error


class AppMaker(Protocol):
    """Makes the app; `app.main.create_app` is one."""

    def __call__(self, settings: Settings, /, *, on_device_lost: Callable[[], None]) -> FastAPI:
        """Put the service together."""


def serve(make_app: AppMaker, settings: Settings) -> NoReturn:
    """Serve until a signal ends it, or the loss of the device, and end the process.

    A normal end would join the device thread, and wait for the device where torch_npu says good-bye to it.
    """

    def on_device_lost() -> None:
        server.device_lost()

    try:
        check_address(settings.host, settings.port)
    except AddressError as error:
        _log.critical("cannot start: %s", error)
        exit_now(START_FAILED)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gc.disable()  # until it is started: looking through millions of new objects took a fifth of the imports' time
    app = make_app(settings, on_device_lost=on_device_lost)
    server = DrainingServer(app, settings)
    try:
        server.run()
    except Exception:  # noqa: BLE001 - the process's edge
        _log.exception("the server failed")
        exit_now(_GAVE_UP)
    exit_now(server.exit_code if server.started else START_FAILED)
