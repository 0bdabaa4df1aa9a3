"""The server: uvicorn, made to drain in the open, to speak the one error language, and to end when it has to."""

import gc
import json
import logging
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, Protocol

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.api.error_handlers import PROBLEM_MEDIA_TYPE, problem_body
from app.errors import MalformedRequestError
from app.inference.engine import Engine
from app.settings import Settings

_log = logging.getLogger(__name__)

START_FAILED = 3
"""Exit code of a start that failed; uvicorn's own."""

_GAVE_UP = 1
_DEVICE_LOST = 4
_LAST_BYTES_S = 5
"""Seconds that are left for answers under way, and bodies that trickle in, once nobody is waiting for a picture."""

_SWITCH_INTERVAL_S = 0.0005
"""Seconds after which a thread in Python code gives way to the event loop; Python's default is ten times that."""


class _DrainingServer(uvicorn.Server):
    """A uvicorn server that keeps listening while it finishes what it has accepted.

    uvicorn closes its listener at the first signal, which a load balancer sees as refused connections until its next
    probe. Here new requests get 503 and `Connection: close` meanwhile, and probes an answer.
    """

    def __init__(self, config: uvicorn.Config, engine: Engine, *, drain_s: float) -> None:
        super().__init__(config)
        self._engine = engine
        self._drain_s = drain_s
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
            _log.warning("stopped by %s during start", signal.Signals(sig).name)
            exit_now(128 + sig)
        if self._signalled:
            _log.warning("second %s: stopping at once", signal.Signals(sig).name)
            exit_now(self.exit_code or 128 + sig)
        self._signalled = True
        _log.info("%s: draining, %d requests in flight", signal.Signals(sig).name, self._engine.in_flight)
        self._drain()

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
            if not self._engine.in_flight:
                self.should_exit = True
            elif time.monotonic() >= self._drain_until and not self._gave_up:
                _log.error("drain time is over: giving up on %d requests", self._engine.in_flight)
                self._gave_up = True
                self.exit_code = self.exit_code or _GAVE_UP
                self._engine.give_up()
        return await super().on_tick(counter)


class _Protocol(H11Protocol):
    """uvicorn's HTTP/1.1, with the one error body also for what is no HTTP."""

    def send_400_response(self, msg: str) -> None:
        """Answer with problem+json and close the connection."""
        request_id = uuid.uuid4().hex
        body = json.dumps(problem_body(MalformedRequestError(msg), request_id=request_id)).encode()
        headers = [
            (b"Content-Type", PROBLEM_MEDIA_TYPE.encode()),
            (b"Content-Length", str(len(body)).encode()),
            (b"X-Request-ID", request_id.encode()),
            (b"Cache-Control", b"no-store"),
            (b"Connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=MalformedRequestError.status, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def exit_now(code: int) -> NoReturn:
    """End the process without joining the device thread, which may be in a call for minutes or for ever."""
    logging.shutdown()
    os._exit(code)


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

    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gc.disable()  # until it is started: looking through millions of new objects took a fifth of the imports' time
    app = make_app(settings, on_device_lost=on_device_lost)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=_Protocol,  # on h11: httptools, which uvicorn prefers when it is installed, takes headers of any size
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=_LAST_BYTES_S,
    )
    server = _DrainingServer(config, app.state.context.engine, drain_s=settings.drain_s)
    try:
        server.run()
    except Exception:  # noqa: BLE001 - the process's edge
        _log.exception("the server failed")
        exit_now(_GAVE_UP)
    exit_now(server.exit_code if server.started else START_FAILED)
