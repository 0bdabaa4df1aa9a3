"""Memory for tens of megabytes that blocks no other thread.

malloc may clear such memory at once, and Python fills a new object, while the GIL is held: 30 MiB stop the event loop
for up to 60 ms. The system clears these pages one by one as they are written, and gets them back when they are freed.
"""

import mmap


def reserve(size_bytes: int) -> mmap.mmap:
    """Return this much memory. The system provides each page when it is first written."""
    return mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
