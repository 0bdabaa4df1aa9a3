import dataclasses
from collections.abc import Sequence

import pytest

from app.errors import ClientDisconnectedError, DeadPictureError, DeviceLostError, DeviceOutOfMemoryError
from app.inference.device_guard import DeviceGuard
from app.modes.txt2img import Txt2ImgParams
from app.pipelines.base import GenerationParams, PipelineImage
from tests.support.gated_pipeline import GatedPipeline

BATCH = [Txt2ImgParams(prompt="a cat", seed=seed, num_inference_steps=1, width=64, height=64) for seed in range(3)]


@pytest.fixture
def guard(pipeline: GatedPipeline) -> DeviceGuard:
    return DeviceGuard(pipeline=pipeline, device=pipeline.device, on_progress=lambda: None)


def made(guard: DeviceGuard, *batch: Txt2ImgParams) -> list[bytes]:
    """The pixels that one request gets."""
    (outcome,) = guard.call([batch])
    assert not isinstance(outcome, Exception), outcome
    return [image.pixels.tobytes() for image in outcome]


def test_no_picture_leaves_before_the_device_has_proved_itself(guard: DeviceGuard, pipeline: GatedPipeline) -> None:
    assert len(made(guard, *BATCH)) == 3
    assert pipeline.device.checks == 1
    pipeline.device.error = DeviceLostError()
    with pytest.raises(DeviceLostError):
        guard.call([BATCH])


def test_when_memory_is_short_the_batch_is_tried_once_more_one_by_one_with_an_empty_cache(
    guard: DeviceGuard, pipeline: GatedPipeline
) -> None:
    pipeline.errors = [DeviceOutOfMemoryError("full")]
    alone = [made(guard, params)[0] for params in BATCH]
    pipeline.calls.clear()
    pipeline.errors = [DeviceOutOfMemoryError("full")]
    assert made(guard, *BATCH) == alone
    assert [len(batch) for batch in pipeline.calls] == [3, 1, 1, 1]


def test_a_request_with_more_pictures_than_are_made_at_once_is_made_in_parts() -> None:
    pipeline = GatedPipeline(max_batch=2)
    guard = DeviceGuard(pipeline=pipeline, device=pipeline.device, on_progress=lambda: None)
    alone = [made(guard, params)[0] for params in BATCH]
    pipeline.calls.clear()
    assert made(guard, *BATCH) == alone
    assert [len(batch) for batch in pipeline.calls] == [2, 1]


def test_the_rest_of_a_request_that_nobody_waits_for_any_more_is_not_made() -> None:
    pipeline = GatedPipeline(max_batch=1)
    guard = DeviceGuard(pipeline=pipeline, device=pipeline.device, on_progress=lambda: None)
    (outcome,) = guard.call([BATCH], wanted=lambda _: len(pipeline.calls) < 2)
    assert isinstance(outcome, ClientDisconnectedError)
    assert [batch[0].seed for batch in pipeline.calls] == [0, 1]


def test_no_second_try_is_made_for_those_who_left_meanwhile(guard: DeviceGuard, pipeline: GatedPipeline) -> None:
    pipeline.errors = [ValueError("odd")]
    outcomes = guard.call([[params] for params in BATCH], wanted=lambda number: number != 1)
    assert [isinstance(outcome, ClientDisconnectedError) for outcome in outcomes] == [False, True, False]
    assert [[params.seed for params in batch] for batch in pipeline.calls] == [[0, 1, 2], [0], [2]]


def test_the_cache_is_emptied_once_and_only_when_memory_is_short(guard: DeviceGuard, pipeline: GatedPipeline) -> None:
    made(guard, *BATCH)
    assert pipeline.device.times_freed == 0
    pipeline.errors = [DeviceOutOfMemoryError("full"), DeviceOutOfMemoryError("full")]
    (outcome,) = guard.call([BATCH])
    assert isinstance(outcome, DeviceOutOfMemoryError)
    assert pipeline.device.times_freed == 1


@pytest.mark.parametrize("error", [DeviceOutOfMemoryError("full"), DeadPictureError("black"), ValueError("odd")])
def test_after_any_error_the_device_has_to_prove_itself(
    guard: DeviceGuard, pipeline: GatedPipeline, error: Exception
) -> None:
    pipeline.errors = [error]
    pipeline.device.error = DeviceLostError("it does not compute")
    with pytest.raises(DeviceLostError, match="it does not compute"):
        guard.call([BATCH])
    assert len(pipeline.calls) == 1


def test_after_the_second_shortage_of_memory_too_the_device_has_to_prove_itself(
    guard: DeviceGuard, pipeline: GatedPipeline
) -> None:
    pipeline.errors = [DeviceOutOfMemoryError("full"), DeviceOutOfMemoryError("full")]
    (outcome,) = guard.call([BATCH])
    assert isinstance(outcome, DeviceOutOfMemoryError)
    assert pipeline.device.checks == 2


@pytest.mark.parametrize("error", [DeadPictureError("black"), ValueError("odd")])
def test_the_error_of_one_request_alone_is_its_outcome_at_once(
    guard: DeviceGuard, pipeline: GatedPipeline, error: Exception
) -> None:
    pipeline.errors = [error]
    assert guard.call([BATCH]) == [error]
    assert len(pipeline.calls) == 1


def test_a_lost_device_is_not_tried_again(guard: DeviceGuard, pipeline: GatedPipeline) -> None:
    pipeline.errors = [DeviceLostError("gone")]
    with pytest.raises(DeviceLostError):
        guard.call([BATCH, BATCH])
    assert len(pipeline.calls) == 1


@pytest.mark.parametrize("error", [DeadPictureError("black"), ValueError("odd"), DeviceOutOfMemoryError("full")])
@pytest.mark.parametrize("place", [0, 3, 7])
def test_a_poisoned_request_takes_no_other_of_its_batch_along(
    guard: DeviceGuard, pipeline: GatedPipeline, place: int, error: Exception
) -> None:
    requests = [[dataclasses.replace(BATCH[0], seed=seed)] for seed in range(8)]
    alone = [made(guard, *request) for request in requests]
    pipeline.poison = {place: error}
    outcomes = guard.call(requests)
    assert outcomes[place] is error
    for i, outcome in enumerate(outcomes):
        if i != place:
            assert not isinstance(outcome, Exception)
            assert [image.pixels.tobytes() for image in outcome] == alone[i]


def test_a_device_that_dies_of_one_request_of_a_batch_gives_nobody_a_picture(
    guard: DeviceGuard, pipeline: GatedPipeline
) -> None:
    pipeline.poison = {3: DeviceLostError("gone")}
    with pytest.raises(DeviceLostError):
        guard.call([[dataclasses.replace(BATCH[0], seed=seed)] for seed in range(8)])


def test_a_pipeline_that_makes_too_few_pictures_fails_and_gives_nobody_another_s(guard: DeviceGuard) -> None:
    class Short(GatedPipeline):
        def __call__(self, batch: Sequence[GenerationParams], /) -> list[PipelineImage]:
            return super().__call__(batch)[1:]

    outcomes = dataclasses.replace(guard, pipeline=Short()).call([BATCH, BATCH])
    assert [type(outcome) for outcome in outcomes] == [RuntimeError] * 2


def test_a_check_without_memory_after_a_shortage_takes_no_other_of_the_batch_along(
    guard: DeviceGuard, pipeline: GatedPipeline
) -> None:
    pipeline.poison = {1: DeviceOutOfMemoryError("full")}
    check, checks = pipeline.device.check, iter([None, None, DeviceOutOfMemoryError("full")])

    def short_once() -> None:
        check()
        if (error := next(checks, None)) is not None:
            raise error

    pipeline.device.check = short_once  # type: ignore[method-assign]
    outcomes = guard.call([[params] for params in BATCH])
    assert [isinstance(outcome, Exception) for outcome in outcomes] == [False, True, False]
