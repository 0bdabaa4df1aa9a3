"""`python -m app`: ends at once when told to, also while it imports; all else is the command line's."""

import os
import signal
import sys
from typing import NoReturn

# As PID 1 of a container a process has no default action for signals, and the imports below take a while.
for _number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(_number, lambda number, _frame: os._exit(128 + number))

from app.cli.commands import main  # noqa: E402 - see above


def run() -> NoReturn:
    """Run what the process's arguments say, and end it; also the script `sdxl-turbo-server`."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
