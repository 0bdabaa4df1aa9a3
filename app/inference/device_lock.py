"""The lock that puts calls in order, and the one thread that keeps them apart.

A lock alone does not serialize: when a task is cancelled while it awaits a thread, `async with` frees the lock and the
thread runs on. So this lock is freed by the end of the call, not by the end of the wait; and all calls run on one
thread, which also is what Ascend needs, whose current device is per thread.

Who gets the lock takes along those behind it that can be served by the same call. Nobody waits for company: when the
lock is free, it is taken at once.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")
Item = TypeVar("Item")


class TooLateError(Exception):
    """The device became free too late to finish this item in time."""


class DeviceLock:
    """First come, first served access to one device. Belongs to the event loop; calls alone run on the thread.

    A call that runs for longer than its limit counts as hung; the limit is `hang_limit_s` unless the call has its own.
    """

    def __init__(self, *, hang_limit_s: float) -> None:
        self.hang_limit_s = hang_limit_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self._waiters: deque[_Waiter] = deque()
        self._busy = False
        self._serving = 0
        self._serving_s = 0.0
        self._running_since: float | None = None
        self._limit_s = hang_limit_s
        self._idle_since = time.monotonic()
        self._busy_s = 0.0
        self._busy_since = 0.0

    @property
    def busy(self) -> bool:
        """Whether a call runs, be it one that nobody waits for any more."""
        return self._busy

    @property
    def serving(self) -> int:
        """Items with a key that the running call serves."""
        return self._serving

    @property
    def serving_s(self) -> float:
        """Expected seconds of the items with a key that the running call serves."""
        return self._serving_s

    @property
    def limit_s(self) -> float:
        """Seconds after which the running call, or the last one, counts as hung."""
        return self._limit_s

    @property
    def running_s(self) -> float:
        """Seconds that the running call has been running, or trying again; 0.0 when none is. Never blocks."""
        since = self._running_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def hung(self) -> bool:
        """Whether the running call has run for too long."""
        return self.running_s > self._limit_s

    @property
    def idle_s(self) -> float:
        """Seconds since the last call ended; 0.0 while one runs. Never blocks."""
        return 0.0 if self.busy else time.monotonic() - self._idle_since

    @property
    def busy_s(self) -> float:
        """Seconds that calls have run in all, the running one included. Never blocks."""
        return self._busy_s + (time.monotonic() - self._busy_since if self._busy else 0.0)

    async def run(
        self, call: Callable[[], T], *, limit_s: float | None = None, on_turn: Callable[[], None] | None = None
    ) -> T:
        """Wait for the device, run `call` on the device thread, and return what it returns or raises.

        `on_turn` is called on the event loop at the moment when the wait is over. After `limit_s` seconds the call
        counts as hung.

        Cancelled while it waits, it leaves the queue and `call` never runs. Cancelled later, `call` runs to its end,
        the device stays busy until then, and the result is dropped.
        """
        return await self.serve(None, lambda _: [call()], key=None, limit_s=limit_s, on_turn=on_turn)

    async def serve(
        self,
        item: Item,
        call: Callable[[Sequence[Item]], Sequence[T | Exception]],
        *,
        key: Hashable | None,
        limit: int = 1,
        pictures: int = 1,
        expected_s: float = 0.0,
        limit_s: float | None = None,
        start_by: float = math.inf,
        ends: float = math.inf,
        on_turn: Callable[[], None] | None = None,
    ) -> T:
        """Wait for the device, have `call` serve the item on the device thread, and return or raise its outcome.

        `call` is given the item that has waited longest and, in the order in which they came, others of the same key as
        long as they have no more than `limit` pictures in all, and as all of them can be done by the earliest end
        among them; it returns an outcome for each. What it raises, it
        raises for all of them. Items without a key are served alone.

        `on_turn` and what becomes of a cancelled wait are those of `run`: who leaves takes only its own item along.
        The limits of the items that a call serves add up.

        Args:
            item: The item, as `call` takes it.
            call: The function that serves items.
            key: Items with the same key may be served together.
            limit: Pictures of one call.
            pictures: Pictures of this item.
            expected_s: Seconds that it is expected to take.
            limit_s: Seconds that it adds to those after which its call counts as hung.
            start_by: Time on the event loop's clock after which the item is not started.
            ends: Time on the event loop's clock until which somebody waits for it.
            on_turn: As in `run`.

        Raises:
            TooLateError: The device was not free by `start_by`.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(
            item, call, key, limit, pictures, expected_s, limit_s or self.hang_limit_s, start_by, ends, on_turn, future
        )
        self._waiters.append(waiter)
        self._go_on()
        try:
            return await future
        except asyncio.CancelledError:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif future.done() and not future.cancelled():
                future.exception()  # asked for here, or asyncio complains of an error that nobody was told
            raise

    def restart_clock(self) -> None:
        """Have the running call begin anew, as far as the hang limit is concerned. On the device thread."""
        self._running_since = time.monotonic()

    def close(self) -> None:
        """End the thread once its call has ended, without waiting for that."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _go_on(self) -> None:
        """Let the next waiters have the device, if it is free and there are any."""
        if self._busy or not (served := self._take()):
            return
        self._busy = True
        with_key = served if served[0].key is not None else []
        self._serving, self._serving_s = len(with_key), sum(waiter.expected_s for waiter in with_key)
        self._limit_s = sum(waiter.limit_s for waiter in served)
        self._running_since = self._busy_since = time.monotonic()
        for waiter in served:
            if waiter.on_turn is not None:
                waiter.on_turn()
        items = [waiter.item for waiter in served]
        try:
            call = asyncio.get_running_loop().run_in_executor(self._thread, _outcomes, served[0].call, items)
        except RuntimeError as error:  # the thread has ended, and so has the service
            self._let_go()
            for waiter in served:
                waiter.future.set_exception(error)
            return
        call.add_done_callback(partial(self._end, served))

    def _take(self) -> list["_Waiter"]:
        """Take the oldest waiter out of the queue, and those behind it that fit into the same call."""
        self._drop_those_too_late()
        if not self._waiters:
            return []
        first = self._waiters.popleft()
        served, room = [first], first.limit - first.pictures
        done, ends = asyncio.get_running_loop().time() + first.least_s, first.ends
        for waiter in tuple(self._waiters) if first.key is not None else ():
            in_time = done + waiter.least_s <= min(ends, waiter.ends)
            if waiter.key == first.key and waiter.pictures <= room and in_time:
                served.append(waiter)
                room -= waiter.pictures
                done, ends = done + waiter.least_s, min(ends, waiter.ends)
                self._waiters.remove(waiter)
        return served

    def _drop_those_too_late(self) -> None:
        """Remove waiters whose client has left, and waiters that cannot be finished in time."""
        now = asyncio.get_running_loop().time()
        for waiter in tuple(self._waiters):
            too_late = now > waiter.start_by
            if too_late or waiter.future.done():
                self._waiters.remove(waiter)
            if too_late and not waiter.future.done():
                waiter.future.set_exception(TooLateError())

    def _end(self, served: Sequence["_Waiter"], call: asyncio.Future[list[Any]]) -> None:
        self._let_go()
        if call.cancelled():
            for waiter in served:
                waiter.future.cancel()
            return
        error = call.exception()
        outcomes = [error] * len(served) if error is not None else call.result()
        for waiter, outcome in zip(served, outcomes, strict=True):
            if waiter.future.done():
                continue  # it left
            if isinstance(outcome, BaseException):
                waiter.future.set_exception(outcome)
            else:
                waiter.future.set_result(outcome)
        self._go_on()  # before those who were served wake up: the device waits for nobody to collect what it made

    def _let_go(self) -> None:
        self._busy = False
        self._serving, self._serving_s = 0, 0.0
        self._running_since = None
        self._idle_since = time.monotonic()
        self._busy_s += self._idle_since - self._busy_since


def _outcomes(call: Callable[[Sequence[Any]], Sequence[Any]], items: Sequence[Any]) -> list[Any]:
    """Make the call and see to it that its outcomes can be handed out. On the device thread."""
    try:
        outcomes = list(call(items))
    except StopIteration as error:  # which a future does not take
        raise RuntimeError("The call stopped early.") from error
    if len(outcomes) != len(items):
        raise RuntimeError(f"The call has {len(outcomes)} outcomes for {len(items)} items.")
    return [RuntimeError("It stopped early.") if isinstance(one, StopIteration) else one for one in outcomes]


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    item: Any
    call: Callable[[Sequence[Any]], Sequence[Any]]
    key: Hashable | None
    limit: int
    pictures: int
    expected_s: float
    limit_s: float
    start_by: float
    ends: float
    on_turn: Callable[[], None] | None
    future: asyncio.Future[Any]

    @property
    def least_s(self) -> float:
        """Seconds that it takes at the least."""
        return self.ends - self.start_by if self.ends < math.inf else 0.0
