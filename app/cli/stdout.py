"""Stdout, reserved for a command's results: the output of libraries, such as CANN's, goes to stderr."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

_STDOUT, _STDERR = 1, 2  # file descriptors


@contextmanager
def own_stdout() -> Iterator[TextIO]:
    """Yield stdout for the caller alone; meanwhile all other output to stdout goes to stderr."""
    if sys.stdout is not None:  # None if the process started with stdout closed
        sys.stdout.flush()
    ours = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    # Write file names with their own bytes, also if these are not UTF-8.
    stdout = os.fdopen(os.dup(ours), "w", encoding="utf-8", errors="surrogateescape")
    try:
        yield stdout
    finally:
        with suppress(OSError):  # the flush after the last write has raised it already
            stdout.close()
        os.dup2(ours, _STDOUT)
        os.close(ours)
