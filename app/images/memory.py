"""Memory for tens of megabytes that blocks no other thread.

malloc may clear such memory at once, and Python fills a new object, while the GIL is held: 30 MiB stop the event loop
for up to 60 ms. The system clears these pages one by one as they are written, and gets them back when they are freed.
"""

import math
import mmap
import os
import tempfile

import numpy as np
import numpy.typing as npt

_SPOOLED_BYTES = 12 << 20
"""Arrays of this size and more are kept in a file. Smaller ones stay in memory: the queue bounds their number."""


def reserve(size_bytes: int) -> mmap.mmap:
    """Return this much memory. The system provides each page when it is first written."""
    return mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def waiting_array(shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Return an array of zeros for pixels that are kept while a request waits for the device.

    A large one is in a temporary file without a name, as large uploads are, so that the system can take its memory
    while nobody reads it. It is in memory if there is no room on the disk.
    """
    size_bytes = math.prod(shape)
    if size_bytes < _SPOOLED_BYTES:
        return np.zeros(shape, np.uint8)
    try:
        with tempfile.TemporaryFile() as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)  # a write to a full disk would end the process
            memory = mmap.mmap(file.fileno(), size_bytes)
    except OSError:
        memory = reserve(size_bytes)
    return np.frombuffer(memory, np.uint8).reshape(shape)
