import pytest

from app.errors import DeadPictureError, DeviceLostError, DeviceOutOfMemoryError
from app.inference.device_guard import DeviceGuard
from app.pipelines.base import Txt2ImgParams
from tests.gate import GatedPipeline

BATCH = [Txt2ImgParams(prompt="a cat", seed=seed, num_inference_steps=1, width=64, height=64) for seed in range(3)]


@pytest.fixture
def guard(pipeline: GatedPipeline) -> DeviceGuard:
    return DeviceGuard(pipeline.device, on_progress=lambda: None)


def test_no_picture_leaves_before_the_device_has_proved_itself(guard: DeviceGuard, pipeline: GatedPipeline) -> None:
    assert len(guard.call(pipeline, BATCH)) == 3
    assert pipeline.device.checks == 1
    pipeline.device.error = DeviceLostError()
    with pytest.raises(DeviceLostError):
        guard.call(pipeline, BATCH)


def test_when_memory_is_short_the_batch_is_tried_once_more_one_by_one_with_an_empty_cache(
    guard: DeviceGuard, pipeline: GatedPipeline
) -> None:
    pipeline.errors = [DeviceOutOfMemoryError("full")]
    alone = [guard.call(pipeline, [params])[0].image.tobytes() for params in BATCH]
    pipeline.calls.clear()
    pipeline.errors = [DeviceOutOfMemoryError("full")]
    images = guard.call(pipeline, BATCH)
    assert [len(batch) for batch in pipeline.calls] == [3, 1, 1, 1]
    assert [image.image.tobytes() for image in images] == alone


def test_the_cache_is_emptied_once_and_only_when_memory_is_short(guard: DeviceGuard, pipeline: GatedPipeline) -> None:
    guard.call(pipeline, BATCH)
    assert pipeline.device.times_freed == 0
    pipeline.errors = [DeviceOutOfMemoryError("full"), DeviceOutOfMemoryError("full")]
    with pytest.raises(DeviceOutOfMemoryError):
        guard.call(pipeline, BATCH)
    assert pipeline.device.times_freed == 1


@pytest.mark.parametrize("error", [DeviceOutOfMemoryError("full"), DeadPictureError("black"), ValueError("odd")])
def test_after_any_error_the_device_has_to_prove_itself(
    guard: DeviceGuard, pipeline: GatedPipeline, error: Exception
) -> None:
    pipeline.errors = [error]
    pipeline.device.error = DeviceLostError("it does not compute")
    with pytest.raises(DeviceLostError, match="it does not compute"):
        guard.call(pipeline, BATCH)
    assert len(pipeline.calls) == 1


def test_after_the_second_shortage_of_memory_too_the_device_has_to_prove_itself(
    guard: DeviceGuard, pipeline: GatedPipeline
) -> None:
    pipeline.errors = [DeviceOutOfMemoryError("full"), DeviceOutOfMemoryError("full")]
    with pytest.raises(DeviceOutOfMemoryError):
        guard.call(pipeline, BATCH)
    assert pipeline.device.checks == 2


@pytest.mark.parametrize("error", [DeadPictureError("black"), ValueError("odd"), DeviceLostError("gone")])
def test_what_is_no_shortage_of_memory_is_not_tried_again(
    guard: DeviceGuard, pipeline: GatedPipeline, error: Exception
) -> None:
    pipeline.errors = [error]
    with pytest.raises(type(error)):
        guard.call(pipeline, BATCH)
    assert len(pipeline.calls) == 1
