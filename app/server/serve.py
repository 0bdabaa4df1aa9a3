"""The server process: how it starts and ends."""

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

_SWITCH_INTERVAL_S = 0.0005
"""Seconds after which a thread in Python code yields to the event loop; a tenth of Python's default."""

_log = logging.getLogger(__name__)


class AppMaker(Protocol):
    """Makes the app, as `app.main.create_app` does."""

    def __call__(self, settings: Settings, /, *, on_device_lost: Callable[[], None]) -> FastAPI: ...


def serve(make_app: AppMaker, settings: Settings) -> NoReturn:
    """Serve until a signal arrives or the device is lost, and end the process.

    The process ends by `os._exit`: a normal exit would join the device thread, and torch_npu would wait for the device.
    """
    try:
        check_address(settings.host, settings.port)
    except AddressError as error:
        _log.critical("cannot start: %s %s", error, error.remedy)
        exit_now(START_FAILED)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gc.disable()  # until the server has started: collections took a fifth of the imports' time
    app = make_app(settings, on_device_lost=lambda: server.device_lost())  # noqa: PLW0108 - the server is made below
    server = DrainingServer(app, settings)
    try:
        server.run()
    except Exception:  # noqa: BLE001 - the process's edge
        _log.exception("the server failed")
        exit_now(GAVE_UP)
    exit_now(server.exit_code if server.started else START_FAILED)
