"""Stdout, kept for what a command has to say: what libraries write there, CANN's included, goes to stderr."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

_STDOUT, _STDERR = 1, 2  # file descriptors


@contextmanager
def own_stdout() -> Iterator[TextIO]:
    """Yield stdout; what anybody else writes to it meanwhile goes to stderr."""
    if sys.stdout is not None:  # where the process began without one, its descriptor is /dev/null
        sys.stdout.flush()
    ours = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    # Names of files have the bytes that they have, in UTF-8 or not.
    stdout = os.fdopen(os.dup(ours), "w", encoding="utf-8", errors="surrogateescape")
    try:
        yield stdout
    finally:
        with suppress(OSError):  # who wrote last, and flushed, knows of it
            stdout.close()
        os.dup2(ours, _STDOUT)
        os.close(ours)
