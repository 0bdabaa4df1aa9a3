"""A file that arrives in parts over several connections, and what of it arrived before the process was killed."""

import os
from io import BufferedRandom
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Final, Self

PART_BYTES: Final = 32 << 20
"""Small beside a model's gigabytes, so that all connections are busy nearly to the end, and large beside a request."""

_COUNTER_BYTES = 8


class PartError(Exception):
    """A part cannot be completed, and another attempt would not change this."""


class RangeIgnoredError(PartError):
    """The server does not send the requested range, but the file from its beginning."""


class StoppedError(PartError):
    """Another part or file failed."""


class Part:
    """A part of a file, to which a hub's client writes the bytes in their order. It is used in one thread, by `with`.

    The file's bytes are in their places, and after them is a counter for each part: how many bytes of it are there. A
    counter is written after these bytes, so it holds if the process is killed in between. After a power failure it can
    be wrong, and only the file's hash tells.
    """

    def __init__(self, path: Path, size_bytes: int, number: int, stop: Event) -> None:
        self.start = number * PART_BYTES
        self.end = min(self.start + PART_BYTES, size_bytes)
        self.present_bytes = 0
        self._path = path
        self._counter_at = size_bytes + number * _COUNTER_BYTES
        self._stop = stop
        self._file: BufferedRandom

    @property
    def missing_bytes(self) -> int:
        return self.end - self.start - self.present_bytes

    @property
    def missing_range(self) -> str:
        """The value of the header `Range`."""
        return f"bytes={self.start + self.present_bytes}-{self.end - 1}"

    def __enter__(self) -> Self:
        self._file = self._path.open("r+b")
        self._file.seek(self._counter_at)
        self.present_bytes = int.from_bytes(self._file.read(_COUNTER_BYTES), "little")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, data: bytes) -> int:
        """Write the next bytes.

        Raises:
            RangeIgnoredError: They are more than the missing bytes.
            StoppedError: The event `stop` is set.
        """
        if self._stop.is_set():
            raise StoppedError
        if len(data) > self.missing_bytes:
            raise RangeIgnoredError
        self._put(self.start + self.present_bytes, data)
        self.present_bytes += len(data)
        self._put(self._counter_at, self.present_bytes.to_bytes(_COUNTER_BYTES, "little"))
        return len(data)

    def _put(self, position: int, data: bytes) -> None:
        self._file.seek(position)
        self._file.write(data)
        self._file.flush()

    def tell(self) -> int:
        return self.present_bytes

    def seek(self, _: int) -> int:
        """Refuse: a client begins anew after an answer that is not the requested range."""
        raise RangeIgnoredError


def missing_parts(path: Path, size_bytes: int, stop: Event) -> list[Part]:
    """Return the parts of a file that are not complete, and make the file if there is none.

    A shorter file at the path is the beginning of the file, which a single connection has left.
    """
    present = _present(path, size_bytes)
    parts = [Part(path, size_bytes, number, stop) for number in range(len(present))]
    if _size(path) != size_bytes + len(parts) * _COUNTER_BYTES:
        with path.open("ab") as file:
            if file.tell() > size_bytes:
                file.truncate(0)
        with path.open("r+b") as file:  # leaves a hole, so the disk has no more bytes than arrived
            file.seek(size_bytes)
            file.write(b"".join(count.to_bytes(_COUNTER_BYTES, "little") for count in present))
    return [part for part, count in zip(parts, present, strict=True) if count < part.missing_bytes]


def present_bytes(path: Path, size_bytes: int) -> int:
    """Return how many bytes of a file there are: in its parts, or from its beginning on. Any thread may ask."""
    try:
        there = path.stat().st_size
        return there if there <= size_bytes else sum(_present(path, size_bytes))
    except FileNotFoundError:  # not begun, or just moved to its place
        return 0


def _present(path: Path, size_bytes: int) -> list[int]:
    """Return how many bytes of each part there are."""
    starts = range(0, size_bytes, PART_BYTES)
    there = _size(path)
    if there == size_bytes + len(starts) * _COUNTER_BYTES:
        with path.open("rb") as file:
            file.seek(size_bytes)
            return [int.from_bytes(file.read(_COUNTER_BYTES), "little") for _ in starts]
    if there > size_bytes:  # of a form that this version does not know
        there = 0
    return [min(max(0, there - start), PART_BYTES, size_bytes - start) for start in starts]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def finish(path: Path, size_bytes: int) -> None:
    """Remove the counters from a complete file."""
    os.truncate(path, size_bytes)
