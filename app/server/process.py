"""The end of the process, and its exit codes."""

import logging
import os
from typing import NoReturn

GAVE_UP = 1
"""Exit code after the drain time ended before all requests were answered, or after the server crashed."""

START_FAILED = 3
"""Exit code after a failed start, as uvicorn's."""

DEVICE_LOST = 4
"""Exit code after the device failed."""


def exit_now(code: int) -> NoReturn:
    """End the process without joining the device thread, which may hang in a call."""
    logging.shutdown()
    os._exit(code)
