"""The lock that orders calls, and the one thread that makes them.

The end of the call frees the lock, not the end of the wait: if the task that waits is cancelled, the thread runs on.
When the lock is free, the oldest item is served at once, in one call with waiting items that fit into it.
"""

import asyncio
import math
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Value = TypeVar("Value")


class TooLateError(Exception):
    """The device became free too late to finish this item in time."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Item(Generic[Value, T]):
    """A value to be served by a call, alone or with others.

    `call` gets the values of the items that share it, and returns an outcome for each. Items share a call if they have
    the same key and at most `max_pictures` together; an item without a key is served alone. `on_turn` is called on
    the event loop when the device begins with the item.
    """

    value: Value
    call: Callable[[Sequence[Value]], Sequence[T | Exception]]
    key: Hashable | None = None
    max_pictures: int = 1
    pictures: int = 1
    expected_s: float = 0.0
    least_s: float = 0.0
    """The item is not started if less time is left until `ends`."""
    ends: float = math.inf
    """Time on the event loop's clock at which its client stops waiting."""
    limit_s: float | None = None
    """Seconds that the item adds to the hang limit of its call; None for the lock's `hang_limit_s`."""
    on_turn: Callable[[], None] = lambda: None


_Waiters = dict[Item[Any, Any], asyncio.Future[Any]]
"""Items in the order in which they came, and the futures of their outcomes."""


class BatchingLock:
    """First come, first served access to one device. Belongs to the event loop; only calls run on the device thread.

    A call that runs for longer than the hang limits of its items together counts as hung. Properties never block.
    """

    def __init__(self, *, hang_limit_s: float) -> None:
        self.hang_limit_s = hang_limit_s
        self.limit_s = hang_limit_s
        """Seconds after which the running call, or the last one, counts as hung."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self._waiters: _Waiters = {}
        self._served: _Waiters = {}
        self._running_since = 0.0
        self._changed_at = time.monotonic()
        self._busy_s = 0.0

    @property
    def busy(self) -> bool:
        """Whether a call runs, even if its clients have left."""
        return bool(self._served)

    @property
    def serving(self) -> bool:
        """Whether the running call serves items with a key."""
        return any(item.key is not None for item in self._served)

    @property
    def serving_s(self) -> float:
        """Expected seconds of the running call."""
        return sum(item.expected_s for item in self._served)

    @property
    def running_s(self) -> float:
        """Seconds since the running call, or its second try, began; 0.0 when none runs."""
        return time.monotonic() - self._running_since if self.busy else 0.0

    @property
    def hung(self) -> bool:
        return self.running_s > self.limit_s

    @property
    def idle_s(self) -> float:
        """Seconds since the last call ended; 0.0 while one runs."""
        return 0.0 if self.busy else time.monotonic() - self._changed_at

    @property
    def busy_s(self) -> float:
        """Seconds that calls have run in all, the running one included."""
        return self._busy_s + (time.monotonic() - self._changed_at if self.busy else 0.0)

    async def run(self, call: Callable[[], T], *, limit_s: float | None = None) -> T:
        """Wait for the device, run `call` on the device thread, and return what it returns or raises."""
        return await self.serve(Item(value=None, call=lambda _: [call()], limit_s=limit_s))

    async def serve(self, item: Item[Value, T]) -> T:
        """Wait for the device, serve the item on the device thread, and return or raise its outcome.

        A call serves the oldest item and, in their order, later items that may share it, as long as the earliest `ends`
        among them can be met. An error that the call raises is raised for all of them.

        If the wait is cancelled before the call, the item is never served. If it is cancelled later, the call runs to
        its end, the device stays busy until then, and the item's outcome is dropped.

        Raises:
            TooLateError: When the device was free, less than `least_s` was left.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiters[item] = future
        self._serve_next()
        try:
            return await future
        except asyncio.CancelledError:
            self._waiters.pop(item, None)
            if future.done() and not future.cancelled():
                future.exception()  # retrieved, as asyncio logs errors that nobody retrieves
            raise

    def restart_clock(self) -> None:
        """Restart the running call's time to its hang limit. On the device thread."""
        self._running_since = time.monotonic()

    def close(self) -> None:
        """End the thread after its running call, without waiting for that."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _serve_next(self) -> None:
        if self.busy or not (served := self._take()):
            return
        self.limit_s = sum(item.limit_s or self.hang_limit_s for item in served)
        self._running_since = self._changed_at = time.monotonic()
        self._served = served
        for item in served:
            item.on_turn()
        call, values = next(iter(served)).call, [item.value for item in served]
        try:
            ended = asyncio.get_running_loop().run_in_executor(self._thread, _outcomes, call, values)
        except RuntimeError as error:  # the thread has ended, and so has the service
            self._free()
            for future in served.values():
                future.set_exception(error)
            return
        ended.add_done_callback(self._end)

    def _take(self) -> _Waiters:
        """Drop items that are too late. Take the oldest out of the queue, and later ones that fit into its call."""
        now = asyncio.get_running_loop().time()
        for item, future in tuple(self._waiters.items()):
            if future.done():  # its client has left
                del self._waiters[item]
            elif now + item.least_s > item.ends:
                del self._waiters[item]
                future.set_exception(TooLateError())
        if not self._waiters:
            return {}
        first = next(iter(self._waiters))
        served = {first: self._waiters.pop(first)}
        room, done, ends = first.max_pictures - first.pictures, now + first.least_s, first.ends
        for item in tuple(self._waiters):
            same_kind = first.key is not None and item.key == first.key
            in_time = done + item.least_s <= min(ends, item.ends)
            if same_kind and in_time and item.pictures <= room:
                served[item] = self._waiters.pop(item)
                room, done, ends = room - item.pictures, done + item.least_s, min(ends, item.ends)
        return served

    def _end(self, call: asyncio.Future[list[Any]]) -> None:
        futures = self._served.values()
        self._free()
        if call.cancelled():
            for future in futures:
                future.cancel()
            return
        for future, outcome in zip(futures, call.result(), strict=True):
            if future.done():
                continue  # its client has left
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
        self._serve_next()  # before the served tasks wake up, so that the device does not wait for them

    def _free(self) -> None:
        self._busy_s = self.busy_s
        self._served = {}
        self._changed_at = time.monotonic()


def _outcomes(call: Callable[[Sequence[Any]], Sequence[Any]], values: Sequence[Any]) -> list[Any]:
    """Make the call, and return for each value an outcome that a future can hold. On the device thread."""
    try:
        outcomes = list(call(values))
    except BaseException as error:  # noqa: BLE001 - raised again for each item of the call
        outcomes = [error] * len(values)
    if len(outcomes) != len(values):
        outcomes = [RuntimeError(f"The call has {len(outcomes)} outcomes for {len(values)} items.")] * len(values)
    return [RuntimeError("StopIteration") if isinstance(one, StopIteration) else one for one in outcomes]
