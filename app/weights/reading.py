"""Reads safetensors files front to back, each byte once: it is hashed, and becomes a part of a tensor.

One thread reads ahead into a few buffers, another hashes them, and the caller converts the tensors meanwhile.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import NamedTuple, Self

from app.errors import WeightsError
from app.weights.digests import Digests
from app.weights.safetensors_header import Place, read_places

_BUFFERS = 3
"""One is read into while another is hashed and a third is converted."""

_BUFFER_BYTES = 32 << 20
"""A larger tensor gets a buffer of its own. In fp16 SDXL-Turbo has two: the embeddings of 49408 tokens."""

_ALIGNMENT = 16
"""That of a bytearray. No number format needs more."""

_MOST_VECTORS = 512
"""Buffers of one call of readv(2), which takes at most 1024."""


class RawTensor(NamedTuple):
    """A tensor as it is in a file. `dtype` is the file's name for its number format, such as F16."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview


class Piece(NamedTuple):
    """Whole tensors of a file. They are in memory until the next piece is taken."""

    path: Path
    tensors: Sequence[RawTensor]


class _Read(NamedTuple):
    piece: Piece
    buffer: bytearray
    hashed: Future[None]


class ReadAhead:
    """Files that are being read in a thread, from the start of the `with` on. Iterate once for all their pieces.

    The digest of each file is added to `digests` when its last byte is hashed, before the iteration ends. If it is not
    the expected one, or a file cannot be read, the iteration raises.

    Attributes:
        total_bytes: The size of all files.
        read_bytes: How much of it has been read.
    """

    def __init__(self, paths: Sequence[Path], digests: Digests) -> None:
        self.digests = digests
        self.total_bytes = sum(path.stat().st_size for path in paths)
        self.read_bytes = 0
        self._paths = paths
        self._unused: SimpleQueue[tuple[bytearray, Future[None] | None] | None] = SimpleQueue()
        self._read: SimpleQueue[_Read | Future[None] | Exception | None] = SimpleQueue()
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="hash")
        self._reader = Thread(target=self._read_files, name="read", daemon=True)
        self._closed = False

    def __enter__(self) -> Self:
        for _ in range(_BUFFERS):
            self._unused.put((bytearray(), None))
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop reading, also in the middle of a file, and free the buffers: the progress may be asked for later."""
        self._closed = True
        self._unused.put(None)
        self._reader.join()
        self._hasher.shutdown(cancel_futures=True)
        self._unused, self._read = SimpleQueue(), SimpleQueue()

    def __iter__(self) -> Iterator[Piece]:
        """Yield the pieces of all files, in the files' order.

        Raises:
            WeightsError: A file is damaged.
            OSError: A file cannot be read.
        """
        while (found := self._read.get()) is not None:
            if isinstance(found, Exception):
                raise found
            if isinstance(found, Future):
                found.result()
                continue
            yield found.piece
            self._unused.put((found.buffer, found.hashed))

    def _read_files(self) -> None:
        try:
            for path in self._paths:
                with path.open("rb", buffering=0) as file:
                    self._read_file(path, file)
                if self._closed:
                    return
            self._read.put(None)
        except Exception as error:  # noqa: BLE001 - raised where the pieces are taken
            self._read.put(error)

    def _read_file(self, path: Path, file: FileIO) -> None:
        header, places = read_places(path, file)
        self.read_bytes += len(header)
        sha256 = hashlib.sha256(header)
        for some in _pieces(places):
            unused = self._unused.get()
            if unused is None or self._closed:
                return
            buffer, hashed = unused
            if hashed is not None:
                hashed.result()
            ends = _ends(some)
            if len(buffer) != (wanted := max(ends[-1], _BUFFER_BYTES)):
                buffer = bytearray(wanted)
            parts = [memoryview(buffer)[end - place.size_bytes : end] for place, end in zip(some, ends, strict=True)]
            if not _fill(file, parts):
                raise WeightsError(f"{path} is damaged: it ends too early. Delete it and pull again.")
            self.read_bytes += sum(map(len, parts))
            tensors = [
                RawTensor(place.name, place.dtype, place.shape, part) for place, part in zip(some, parts, strict=True)
            ]
            self._read.put(_Read(Piece(path, tensors), buffer, self._hasher.submit(_update, sha256, parts)))
        self._read.put(self._hasher.submit(lambda: self.digests.add(path, sha256.hexdigest())))


def _pieces(places: Sequence[Place]) -> Iterator[list[Place]]:
    """Group neighbours so that each group fits into a buffer, or is a single tensor."""
    some: list[Place] = []
    end = 0
    for place in places:
        end = _aligned(end) + place.size_bytes
        if some and end > _BUFFER_BYTES:
            yield some
            some, end = [], place.size_bytes
        some.append(place)
    if some:
        yield some


def _ends(places: Sequence[Place]) -> list[int]:
    """Return where in a buffer each tensor ends."""
    ends: list[int] = []
    for place in places:
        ends.append(_aligned(ends[-1] if ends else 0) + place.size_bytes)
    return ends


def _aligned(begin: int) -> int:
    """Return the next place in a buffer where a tensor may begin."""
    return -(-begin // _ALIGNMENT) * _ALIGNMENT


def _fill(file: FileIO, parts: Sequence[memoryview]) -> bool:
    """Read the file on into all parts. Return whether it had enough bytes."""
    left = [part for part in parts if len(part)]
    while left:
        read = os.readv(file.fileno(), left[:_MOST_VECTORS])
        if not read:
            return False
        while left and read >= len(left[0]):
            read -= len(left.pop(0))
        if left:
            left[0] = left[0][read:]
    return True


def _update(sha256: "hashlib._Hash", parts: Sequence[memoryview]) -> None:
    for part in parts:
        sha256.update(part)
