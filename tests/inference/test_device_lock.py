import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator

import pytest

from app.inference.device_lock import DeviceLock
from tests.conftest import until


class Device:
    """Counts the calls that are inside it at once, and the threads that they come on."""

    def __init__(self) -> None:
        self.inside = self.peak = self.calls = 0
        self.threads: set[int] = set()
        self._mutex = threading.Lock()

    def call(self, seconds: float = 0.05) -> int:
        with self._mutex:
            self.calls += 1
            self.inside += 1
            self.peak = max(self.peak, self.inside)
            self.threads.add(threading.get_ident())
        time.sleep(seconds)
        with self._mutex:
            self.inside -= 1
        return self.calls


@pytest.fixture
async def lock() -> AsyncIterator[DeviceLock]:
    lock = DeviceLock(hang_limit_s=30)
    yield lock
    lock.close()


async def test_a_call_whose_waiter_is_cancelled_never_overlaps_the_next(lock: DeviceLock) -> None:
    device = Device()
    for _ in range(5):
        abandoned = asyncio.create_task(lock.run(device.call))
        await until(lambda: device.inside)
        abandoned.cancel()
        await lock.run(device.call)
    assert device.peak == 1


async def test_a_call_that_times_out_never_overlaps_the_next(lock: DeviceLock) -> None:
    device = Device()
    for _ in range(5):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await lock.run(device.call)
        await lock.run(device.call)
    assert device.peak == 1


async def test_every_call_comes_on_the_one_device_thread_however_busy_other_threads_are(lock: DeviceLock) -> None:
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


async def test_waiters_are_served_in_the_order_they_came(lock: DeviceLock) -> None:
    served: list[int] = []
    await asyncio.gather(*(lock.run(lambda i=i: served.append(i)) for i in range(20)))  # type: ignore[misc] # bound i
    assert served == list(range(20))


async def test_a_waiter_that_leaves_costs_the_device_nothing(lock: DeviceLock) -> None:
    device = Device()
    running = asyncio.create_task(lock.run(device.call))
    await until(lambda: device.inside)
    waiting = asyncio.create_task(lock.run(device.call))
    await asyncio.sleep(0)
    waiting.cancel()
    await running
    await lock.run(device.call)
    assert device.calls == 2


async def test_the_device_is_busy_until_the_abandoned_call_ends(lock: DeviceLock) -> None:
    device = Device()
    abandoned = asyncio.create_task(lock.run(device.call))
    await until(lambda: device.inside)
    abandoned.cancel()
    await asyncio.sleep(0)
    assert lock.busy
    assert lock.running_s > 0
    await until(lambda: not lock.busy)
    assert not device.inside
    assert lock.running_s == 0


async def test_an_error_reaches_the_caller_and_frees_the_device(lock: DeviceLock) -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await lock.run(fail)
    assert await lock.run(lambda: 7) == 7


async def test_a_call_that_fails_when_nobody_waits_any_more_is_no_complaint_of_asyncio_s(
    lock: DeviceLock, caplog: pytest.LogCaptureFixture
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
