"""Memory for tens of megabytes that the system clears page by page as it is written, and gets back at once.

malloc may clear its own when it is asked for, and Python fills a new object, while no other thread can run: the event
loop too stands still, for 30 MiB up to 60 ms. And malloc keeps what was freed.
"""

import mmap


def reserve(size_bytes: int) -> mmap.mmap:
    """Return so much memory, of which none is taken before it is written."""
    return mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
