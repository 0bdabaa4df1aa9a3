import dataclasses

import pytest

from app.errors import DeviceLostError, DeviceOutOfMemoryError, MemoryTooSmallError, WeightsError
from app.inference.batching_lock import BatchingLock
from app.inference.registry import PipelineRegistry
from app.pipelines.base import LoadedPipelines, Mode
from tests.support.gated_pipeline import GatedPipeline

SIZES = [(512, 512), (768, 256)]


async def test_entering_loads_once_and_warms_every_mode_up_at_every_size(pipeline: GatedPipeline) -> None:
    async with PipelineRegistry(pipeline.load, BatchingLock(hang_limit_s=30), warm_up_sizes=SIZES) as registry:
        assert registry.warm
        assert [(batch[0].mode, batch[0].width, batch[0].height) for batch in pipeline.calls] == [
            *((mode, 512, 512) for mode in Mode),
            *((mode, 768, 256) for mode in Mode),
        ]
    assert not registry.warm


async def test_every_mode_is_warmed_up_with_as_many_pictures_at_once_as_the_loader_names(
    pipeline: GatedPipeline,
) -> None:
    def load() -> LoadedPipelines:
        return dataclasses.replace(pipeline.load(), warm_up_batches=(1, 4))

    async with PipelineRegistry(load, BatchingLock(hang_limit_s=30), warm_up_sizes=[(64, 64)]):
        assert [(batch[0].mode, len(batch)) for batch in pipeline.calls] == [
            *((mode, 1) for mode in Mode),
            *((mode, 4) for mode in Mode),
        ]
        assert len({params.seed for params in pipeline.calls[-1]}) == 4


async def test_load_warm_up_and_calls_share_one_thread(pipeline: GatedPipeline) -> None:
    lock = BatchingLock(hang_limit_s=30)
    async with PipelineRegistry(pipeline.load, lock, warm_up_sizes=SIZES) as registry:
        await lock.run(lambda: registry.call([pipeline.calls[0]]))
    assert len(pipeline.thread_ids) == 1


@pytest.mark.parametrize("when", ["loading", "warming up"])
async def test_a_start_that_runs_out_of_memory_says_what_to_do(pipeline: GatedPipeline, when: str) -> None:
    def load() -> LoadedPipelines:
        if when == "loading":
            raise DeviceOutOfMemoryError("full")
        return pipeline.load()

    pipeline.error = DeviceOutOfMemoryError("full")
    with pytest.raises(MemoryTooSmallError, match=r"do not fit into memory; .* use a larger machine"):
        await PipelineRegistry(load, BatchingLock(hang_limit_s=30), warm_up_sizes=SIZES).__aenter__()


async def test_the_loader_is_told_when_every_mode_is_warm(pipeline: GatedPipeline) -> None:
    calls: list[int] = []

    def load() -> LoadedPipelines:
        return dataclasses.replace(pipeline.load(), on_warm=lambda: calls.append(len(pipeline.calls)))

    async with PipelineRegistry(load, BatchingLock(hang_limit_s=30), warm_up_sizes=SIZES):
        assert calls == [len(Mode) * len(SIZES)]


async def test_the_costs_are_in_the_unit_that_the_loader_s_work_has_when_it_is_warm() -> None:
    """SDXL-Turbo's loader estimates in TFLOP until its stages are measured, and in seconds from then on."""
    pipeline = GatedPipeline(unit_s=0.1)
    unit = [1000.0]

    def load() -> LoadedPipelines:
        return dataclasses.replace(
            pipeline.load(), work=lambda _: unit[0], on_warm=lambda: unit.append(unit.pop() / 1000)
        )

    async with PipelineRegistry(load, BatchingLock(hang_limit_s=30), warm_up_sizes=[(512, 512)]) as registry:
        assert registry.costs.expected_s(registry.costs.reference) >= 0.1


async def test_a_failed_load_leaves_the_registry_cold() -> None:
    def load() -> LoadedPipelines:
        raise WeightsError("unet is missing")

    registry = PipelineRegistry(load, BatchingLock(hang_limit_s=30), warm_up_sizes=SIZES)
    with pytest.raises(WeightsError, match="unet is missing"):
        await registry.__aenter__()
    assert not registry.warm


async def test_a_failed_warm_up_fails_the_start(pipeline: GatedPipeline) -> None:
    pipeline.error = RuntimeError("no kernel")
    with pytest.raises(RuntimeError, match="no kernel"):
        await PipelineRegistry(pipeline.load, BatchingLock(hang_limit_s=30), warm_up_sizes=SIZES).__aenter__()


async def test_a_device_that_does_not_compute_fails_the_start(pipeline: GatedPipeline) -> None:
    pipeline.device.error = DeviceLostError()
    with pytest.raises(DeviceLostError):
        await PipelineRegistry(pipeline.load, BatchingLock(hang_limit_s=30), warm_up_sizes=SIZES).__aenter__()


async def test_a_cold_registry_says_so(pipeline: GatedPipeline) -> None:
    with pytest.raises(RuntimeError, match="not been entered"):
        _ = PipelineRegistry(pipeline.load, BatchingLock(hang_limit_s=30), warm_up_sizes=SIZES).loaded
