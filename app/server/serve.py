"""The server: uvicorn, made to drain in the open, and to end when it has to."""

import gc
import logging
import sys
from collections.abc import Callable
from typing import NoReturn, Protocol

from fastapi import FastAPI

from app.errors import AddressError
from app.server.address import check_address
from app.server.draining import DrainingServer
from app.server.process import GAVE_UP, START_FAILED, exit_now
from app.settings import Settings

_log = logging.getLogger(__name__)


_SWITCH_INTERVAL_S = 0.0005
"""Seconds after which a thread in Python code gives way to the event loop; Python's default is ten times that."""


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
        exit_now(GAVE_UP)
    exit_now(server.exit_code if server.started else START_FAILED)
