import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Sequence

import pytest

from app.inference.batching_lock import BatchingLock, Item
from tests.conftest import until


class Device:
    """Counts the calls that are inside it at once, and the threads that they come on. Calls wait at a gate."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.gate = threading.Event()
        if is_open:
            self.gate.set()
        self.inside = self.peak = self.calls = 0
        self.threads: set[int] = set()
        self._mutex = threading.Lock()

    def call(self, seconds: float = 0.05) -> int:
        with self._mutex:
            self.calls += 1
            self.inside += 1
            self.peak = max(self.peak, self.inside)
            self.threads.add(threading.get_ident())
        assert self.gate.wait(30)
        time.sleep(seconds)
        with self._mutex:
            self.inside -= 1
        return self.calls


@pytest.fixture
async def lock() -> AsyncIterator[BatchingLock]:
    lock = BatchingLock(hang_limit_s=30)
    yield lock
    lock.close()


async def test_a_call_whose_waiter_is_cancelled_never_overlaps_the_next(lock: BatchingLock) -> None:
    device = Device()
    for _ in range(5):
        device.gate.clear()
        abandoned = asyncio.create_task(lock.run(device.call))
        await until(lambda: device.inside)
        abandoned.cancel()
        following = asyncio.create_task(lock.run(device.call))
        await asyncio.sleep(0)
        device.gate.set()
        await following
    assert device.peak == 1


async def test_a_call_that_times_out_never_overlaps_the_next(lock: BatchingLock) -> None:
    device = Device()
    for _ in range(5):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await lock.run(device.call)
        await lock.run(device.call)
    assert device.peak == 1


async def test_every_call_comes_on_the_one_device_thread_however_busy_other_threads_are(lock: BatchingLock) -> None:
    """Ascend's current device is per thread: a pool that hands calls to whichever thread is free would lose it."""
    device = Device()
    for busy in range(4):
        others = [asyncio.create_task(asyncio.to_thread(time.sleep, 0.05)) for _ in range(busy)]
        await asyncio.sleep(0)
        await lock.run(device.call)
        await asyncio.gather(*others)
    assert len(device.threads) == 1
    pool_threads = await asyncio.gather(*(asyncio.to_thread(threading.get_ident) for _ in range(8)))
    assert not device.threads & set(pool_threads)


async def test_waiters_are_served_in_the_order_they_came(lock: BatchingLock) -> None:
    served: list[int] = []
    await asyncio.gather(*(lock.run(lambda i=i: served.append(i)) for i in range(20)))  # type: ignore[misc] # bound i
    assert served == list(range(20))


async def test_a_waiter_that_leaves_costs_the_device_nothing(lock: BatchingLock) -> None:
    device = Device(is_open=False)
    running = asyncio.create_task(lock.run(device.call))
    await until(lambda: device.inside)
    waiting = asyncio.create_task(lock.run(device.call))
    await asyncio.sleep(0)
    waiting.cancel()
    device.gate.set()
    await running
    await lock.run(device.call)
    assert device.calls == 2


async def test_the_device_is_busy_until_the_abandoned_call_ends(lock: BatchingLock) -> None:
    device = Device(is_open=False)
    abandoned = asyncio.create_task(lock.run(device.call))
    await until(lambda: device.inside)
    abandoned.cancel()
    await asyncio.sleep(0)
    assert lock.busy
    assert lock.running_s > 0
    device.gate.set()
    await until(lambda: not lock.busy)
    assert not device.inside
    assert lock.running_s == 0


async def test_an_error_reaches_the_caller_and_frees_the_device(lock: BatchingLock) -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await lock.run(fail)
    assert await lock.run(lambda: 7) == 7


async def test_a_call_that_fails_when_nobody_waits_any_more_is_no_complaint_of_asyncio_s(
    lock: BatchingLock, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = threading.Event()

    def fail() -> None:
        go_on.wait(60)
        raise RuntimeError("too late")

    abandoned = asyncio.create_task(lock.run(fail))
    await until(lambda: lock.running_s > 0)
    abandoned.cancel()
    with pytest.raises(asyncio.CancelledError):
        await abandoned
    del abandoned
    go_on.set()
    await until(lambda: not lock.busy)
    gc.collect()
    assert caplog.records == []


# Items that are served together.


class Together:
    """Serves items, remembers with which others, and stops in each call while it is `closed`."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def call(self, items: Sequence[str]) -> list[str | Exception]:
        self.batches.append(list(items))
        assert self.go_on.wait(60)
        return [ValueError(item) if item.startswith("bad") else item.upper() for item in items]


async def ask(
    lock: BatchingLock, together: Together, *items: str, key: str = "same", pictures: int = 1
) -> list[asyncio.Task[str]]:
    waiting = [Item(value=item, call=together.call, key=key, max_pictures=4, pictures=pictures) for item in items]
    tasks = [asyncio.create_task(lock.serve(item)) for item in waiting]
    await asyncio.sleep(0)
    return tasks


async def busy(lock: BatchingLock, together: Together) -> asyncio.Task[str]:
    together.go_on.clear()
    (task,) = await ask(lock, together, "first")
    await until(lambda: together.batches)
    return task


async def test_who_finds_the_device_idle_is_served_at_once_and_alone(lock: BatchingLock) -> None:
    together = Together()
    for item in ("a", "b"):
        (task,) = await ask(lock, together, item)
        assert lock.busy
        assert await task == item.upper()
    assert together.batches == [["a"], ["b"]]


async def test_those_who_wait_are_served_together_and_each_gets_its_own(lock: BatchingLock) -> None:
    together = Together()
    first = await busy(lock, together)
    waiting = await ask(lock, together, "a", "b", "c")
    together.go_on.set()
    assert await asyncio.gather(first, *waiting) == ["FIRST", "A", "B", "C"]
    assert together.batches == [["first"], ["a", "b", "c"]]


async def test_a_call_serves_no_more_pictures_than_it_may(lock: BatchingLock) -> None:
    together = Together()
    tasks = [await busy(lock, together)]
    tasks += await ask(lock, together, "a", "b", "c")
    tasks += await ask(lock, together, "pair", pictures=2)
    tasks += await ask(lock, together, "d")
    tasks += await ask(lock, together, "crowd", pictures=9)
    together.go_on.set()
    await asyncio.gather(*tasks)
    assert together.batches == [["first"], ["a", "b", "c", "d"], ["pair"], ["crowd"]]


async def test_the_oldest_is_next_and_takes_along_its_own_kind_in_the_order_they_came(lock: BatchingLock) -> None:
    together = Together()
    tasks = [await busy(lock, together)]
    for item, key in (("a1", "a"), ("b1", "b"), ("a2", "a"), ("c1", "c"), ("b2", "b"), ("a3", "a")):
        tasks += await ask(lock, together, item, key=key)
    together.go_on.set()
    await asyncio.gather(*tasks)
    assert together.batches == [["first"], ["a1", "a2", "a3"], ["b1", "b2"], ["c1"]]


async def test_the_limits_of_those_who_share_a_call_add_up(lock: BatchingLock) -> None:
    together = Together()
    first = await busy(lock, together)
    assert lock.limit_s == 30
    tasks = [
        asyncio.create_task(
            lock.serve(Item(value=item, call=together.call, key="same", max_pictures=4, limit_s=limit_s))
        )
        for item, limit_s in (("one", 3), ("two", 4))
    ]
    await asyncio.sleep(0)
    together.go_on.set()
    await asyncio.gather(first, *tasks)
    assert together.batches == [["first"], ["one", "two"]]
    assert lock.limit_s == 7


async def test_who_has_no_key_is_served_alone(lock: BatchingLock) -> None:
    together = Together()
    first = await busy(lock, together)
    calls: list[int] = []
    alone = [asyncio.create_task(lock.run(lambda i=i: calls.append(i))) for i in range(3)]  # type: ignore[misc] # bound i
    together.go_on.set()
    await asyncio.gather(first, *alone)
    assert calls == [0, 1, 2]


async def test_who_leaves_while_it_waits_is_not_served_and_who_leaves_later_takes_nobody_along(
    lock: BatchingLock,
) -> None:
    together = Together()
    first = await busy(lock, together)
    a, b, c = await ask(lock, together, "a", "b", "c")
    b.cancel()
    await asyncio.sleep(0)
    first.cancel()
    together.go_on.set()
    await until(lambda: len(together.batches) == 2)
    assert together.batches == [["first"], ["a", "c"]]
    assert [await a, await c] == ["A", "C"]


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_who_leaves_during_the_call_that_it_shares_takes_nobody_along(lock: BatchingLock, place: int) -> None:
    together = Together()
    first = await busy(lock, together)
    tasks = await ask(lock, together, "a", "b", "c")
    together.go_on.set()
    await first
    together.go_on.clear()
    await until(lambda: len(together.batches) == 2)
    tasks[place].cancel()
    await asyncio.sleep(0)
    together.go_on.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results.pop(place), asyncio.CancelledError)
    assert results == [item for item in ("A", "B", "C") if item != "ABC"[place]]


async def test_an_outcome_that_is_an_error_is_one_waiter_s_alone(lock: BatchingLock) -> None:
    together = Together()
    first = await busy(lock, together)
    waiting = await ask(lock, together, "a", "bad", "c")
    together.go_on.set()
    await first
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [results[0], results[2]] == ["A", "C"]
    assert isinstance(results[1], ValueError)


async def test_the_next_call_begins_before_the_last_one_s_results_are_collected(lock: BatchingLock) -> None:
    together = Together()
    first = await busy(lock, together)
    (other,) = await ask(lock, together, "a", key="other")
    running: list[bool] = []
    first.add_done_callback(lambda _: running.append(lock.busy))
    together.go_on.set()
    await asyncio.gather(first, other)
    assert running == [True]


@pytest.mark.parametrize("outcomes", [[], ["one"], ["one", "two", "three"], [StopIteration(), "two"]])
async def test_outcomes_that_cannot_be_handed_out_fail_those_who_wait_and_free_the_device(
    lock: BatchingLock, outcomes: list[str | Exception]
) -> None:
    together = Together()
    first = await busy(lock, together)
    items = [Item(value=item, call=lambda _: outcomes, key="k", max_pictures=4) for item in ("a", "b")]
    waiting = [asyncio.create_task(lock.serve(item)) for item in items]
    await asyncio.sleep(0)
    together.go_on.set()
    await first
    async with asyncio.timeout(10):
        results = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(results[0], RuntimeError)
    assert results[1] == "two" or isinstance(results[1], RuntimeError)
    assert await lock.run(lambda: 7) == 7


async def test_who_waits_for_a_lock_that_is_closed_is_told(lock: BatchingLock) -> None:
    together = Together()
    first = await busy(lock, together)
    waiting = await ask(lock, together, "a", key="other")
    lock.close()
    together.go_on.set()
    async with asyncio.timeout(10):
        assert await first == "FIRST"
        assert isinstance((await asyncio.gather(*waiting, return_exceptions=True))[0], RuntimeError)
    assert not lock.busy
