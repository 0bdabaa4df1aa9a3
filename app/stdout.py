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
    sys.stdout.flush()
    ours = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    stdout = os.fdopen(os.dup(ours), "w", encoding="utf-8")
    try:
        yield stdout
    finally:
        with suppress(BrokenPipeError):  # who reads it has read enough
            stdout.close()
        os.dup2(ours, _STDOUT)
        os.close(ours)
