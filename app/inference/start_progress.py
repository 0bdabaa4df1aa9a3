"""How far a start is: bytes of weights that are read, pictures of the warm-up that are made, and what is left."""

import time
from collections.abc import Callable

BytesRead = Callable[[], tuple[int, int]]
"""Returns how many bytes of the weights are read, and how many there are. For any thread."""


class StartProgress:
    """The progress of one start. The loader and the warm-up write it; any thread may read it."""

    def __init__(self) -> None:
        self._bytes_read: BytesRead | None = None
        self._reading_since = 0.0
        self._warming_since: float | None = None
        self._made = self._planned = 0

    def begin_reading(self, bytes_read: BytesRead) -> None:
        """Note that the weights are being read from now on."""
        self._reading_since = time.monotonic()
        self._bytes_read = bytes_read

    def begin_warm_up(self, pictures: int) -> None:
        """Note that the weights are loaded, and that so many pictures are to be made."""
        self._planned = pictures
        self._warming_since = time.monotonic()

    def add_pictures(self, pictures: int) -> None:
        """Note that pictures of the warm-up are made."""
        self._made += pictures

    def __str__(self) -> str:
        """Return what is being done, and how long it still takes as far as that is known, for the log."""
        if self._warming_since is not None:
            seconds = time.monotonic() - self._warming_since
            rest = self._planned - self._made
            left = f"; ready in about {seconds * rest / self._made:.0f} s" if self._made else ""
            return f"made {self._made} of {self._planned} pictures to warm up{left}"
        if self._bytes_read is None:
            return "checking the weights"
        read, total = self._bytes_read()
        seconds = time.monotonic() - self._reading_since
        left = f"; the rest takes about {seconds * (total - read) / read:.0f} s" if 0 < read < total else ""
        return f"read {read / 1e9:.1f} of {total / 1e9:.1f} GB of weights{left}"
