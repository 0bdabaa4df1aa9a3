import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from unittest.mock import ANY, Mock

import pytest

from app.errors import DeviceLostError, DeviceOutOfMemoryError
from app.inference.admission import Admission
from app.inference.batching_lock import BatchingLock
from app.inference.device_watch import DeviceWatch
from app.inference.engine import Engine
from app.inference.registry import LOAD_LIMITS, PipelineRegistry
from app.pipelines.base import LoadedPipelines
from tests.conftest import until
from tests.support.clock import Clock
from tests.support.gated_pipeline import GatedPipeline


@contextlib.asynccontextmanager
async def watched(
    pipeline: GatedPipeline, *, hang_limit_s: float = 30, idle_check_s: float = 30
) -> AsyncIterator[tuple[Engine, BatchingLock, Mock]]:
    lock, on_device_lost = BatchingLock(hang_limit_s=hang_limit_s), Mock()
    async with PipelineRegistry(pipeline.load, lock, warm_up_sizes=[(64, 64)]) as registry:
        engine = Engine(registry, Admission(registry, max_queue=2, deadline_s=30), on_device_lost=on_device_lost)
        watch = DeviceWatch(engine, idle_check_s=idle_check_s)
        pipeline.device.checks = 0
        watching = asyncio.create_task(watch.run())
        try:
            yield engine, lock, on_device_lost
        finally:
            pipeline.gate.set()
            watching.cancel()
            await asyncio.wait([watching])


async def test_a_call_that_hangs_is_found_and_reported_once(pipeline: GatedPipeline) -> None:
    async with watched(pipeline, hang_limit_s=0.1) as (engine, lock, on_device_lost):
        pipeline.gate.clear()
        call = asyncio.create_task(lock.run(pipeline.gate.wait))
        await until(lambda: on_device_lost.called)
        with pytest.raises(DeviceLostError, match=r"did not return within 0\.1 s"):
            engine.admission.check()
        await asyncio.sleep(0.15)
        on_device_lost.assert_called_once_with(ANY)
        pipeline.gate.set()
        await call


async def test_calls_below_the_limit_are_left_alone_however_many_there_are(
    clock: Clock, pipeline: GatedPipeline
) -> None:
    async with watched(pipeline, hang_limit_s=20) as (engine, lock, on_device_lost):
        for _ in range(6):
            pipeline.gate.clear()
            call = asyncio.create_task(lock.run(pipeline.gate.wait))
            await until(lambda: lock.busy)
            clock.sleep(6)
            await asyncio.sleep(0.01)  # the watch looks
            assert engine.live
            pipeline.gate.set()
            await call
        assert not on_device_lost.called


async def test_an_idle_device_is_checked_again_and_again(pipeline: GatedPipeline) -> None:
    async with watched(pipeline, idle_check_s=0.05):
        await until(lambda: pipeline.device.checks >= 3)


async def test_a_busy_device_is_not(clock: Clock, pipeline: GatedPipeline) -> None:
    async with watched(pipeline, idle_check_s=20) as (_, lock, _lost):
        for _ in range(10):
            await lock.run(lambda: None)
            clock.sleep(5)
            await asyncio.sleep(0.01)
        assert pipeline.device.checks == 0


async def test_a_device_that_dies_while_idle_is_reported(pipeline: GatedPipeline) -> None:
    async with watched(pipeline, idle_check_s=0.05) as (engine, _, on_device_lost):
        pipeline.device.error = DeviceLostError("it does not compute")
        await until(lambda: on_device_lost.called)
        assert not engine.live


async def test_an_idle_device_without_memory_for_a_check_is_not_lost(pipeline: GatedPipeline) -> None:
    async with watched(pipeline, idle_check_s=0.05) as (engine, _, on_device_lost):
        pipeline.device.error = DeviceOutOfMemoryError("full")
        await until(lambda: pipeline.device.checks >= 2)
        assert engine.live
        assert not on_device_lost.called


async def test_a_watch_that_fails_does_not_leave_the_device_unwatched(pipeline: GatedPipeline) -> None:
    async with watched(pipeline, idle_check_s=0.05) as (engine, _, on_device_lost):
        pipeline.device.error = OSError("nobody has thought of this")
        await until(lambda: on_device_lost.called)
        assert not engine.live


async def test_a_call_that_hangs_while_the_service_starts_is_found(pipeline: GatedPipeline) -> None:
    lock, on_device_lost = BatchingLock(hang_limit_s=0.1), Mock()
    registry = PipelineRegistry(pipeline.load, lock, warm_up_sizes=[(64, 64)])
    engine = Engine(registry, Admission(registry, max_queue=2, deadline_s=30), on_device_lost=on_device_lost)
    pipeline.gate.clear()
    watching = asyncio.create_task(DeviceWatch(engine, idle_check_s=0.01).run())
    starting = asyncio.create_task(registry.__aenter__())
    await until(lambda: on_device_lost.called)
    pipeline.gate.set()
    await starting
    watching.cancel()


async def test_loading_may_take_longer_than_a_call(clock: Clock, pipeline: GatedPipeline) -> None:
    lock = BatchingLock(hang_limit_s=10)
    may_load = threading.Event()

    def load() -> LoadedPipelines:
        assert may_load.wait(timeout=30)
        return pipeline.load()

    starting = asyncio.create_task(PipelineRegistry(load, lock, warm_up_sizes=[(64, 64)]).__aenter__())
    await until(lambda: lock.busy)
    clock.sleep(LOAD_LIMITS * 10 - 1)
    assert not lock.hung
    clock.sleep(2)
    assert lock.hung
    may_load.set()
    await starting
