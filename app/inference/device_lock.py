"""The lock that puts calls in order, and the one thread that keeps them apart.

A lock alone does not serialize: when a task is cancelled while it awaits a thread, `async with` frees the lock and the
thread runs on. So the lock is freed by the end of the call, not by the end of the wait; and all calls run on one
thread, which also is what Ascend needs, whose current device is per thread.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class DeviceLock:
    """First come, first served access to one device. Belongs to the event loop; `run` alone touches the thread.

    A call that runs for longer than `hang_limit_s` times its number of pictures is taken for hung.
    """

    def __init__(self, *, hang_limit_s: float) -> None:
        self.hang_limit_s = hang_limit_s
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self._running_since: float | None = None
        self._pictures = 1
        self._idle_since = time.monotonic()

    @property
    def busy(self) -> bool:
        """Whether a call runs, be it one that nobody waits for any more."""
        return self._lock.locked()

    @property
    def running_s(self) -> float:
        """Seconds that the running call has been running, or trying again; 0.0 when none is. Never blocks."""
        since = self._running_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def hung(self) -> bool:
        """Whether the running call has run for too long."""
        return self.running_s > self.hang_limit_s * self._pictures

    @property
    def idle_s(self) -> float:
        """Seconds since the last call ended; 0.0 while one runs. Never blocks."""
        return 0.0 if self.busy else time.monotonic() - self._idle_since

    async def run(self, call: Callable[[], T], *, pictures: int = 1, on_turn: Callable[[], None] | None = None) -> T:
        """Wait for the device, run `call` on the device thread, and return what it returns or raises.

        `on_turn` is called on the event loop at the moment when the wait is over. `pictures` is how many times the hang
        limit the call may take.

        Cancelled while it waits, it leaves the queue and `call` never runs. Cancelled later, `call` runs to its end,
        the device stays busy until then, and the result is dropped.
        """
        await self._lock.acquire()
        self._pictures = pictures
        self._running_since = time.monotonic()
        if on_turn is not None:
            on_turn()
        future = asyncio.get_running_loop().run_in_executor(self._thread, call)
        future.add_done_callback(self._release)
        return await asyncio.shield(future)

    def restart_clock(self) -> None:
        """Have the running call begin anew, as far as the hang limit is concerned. On the device thread."""
        self._running_since = time.monotonic()

    def _release(self, future: asyncio.Future[T]) -> None:
        if not future.cancelled():
            future.exception()  # asked for here, or asyncio complains of calls that fail when nobody waits any more
        self._running_since = None
        self._idle_since = time.monotonic()
        self._lock.release()

    def close(self) -> None:
        """End the thread once its call has ended, without waiting for that."""
        self._thread.shutdown(wait=False, cancel_futures=True)
