"""`python -m app`: runs the command line; a signal ends the process at once, even during imports."""

import os
import signal
import sys
from typing import NoReturn

# PID 1 of a container has no default action for signals, and the imports below take a while.
for _number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(_number, lambda number, _frame: os._exit(128 + number))

from app.cli.commands import main  # noqa: E402 - see above


def run() -> NoReturn:
    """Run the process's arguments as a command and exit; also the script `sdxl-turbo-server`."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
