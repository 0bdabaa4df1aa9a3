import asyncio
import contextlib
import dataclasses
import threading
import time
from collections.abc import AsyncIterator, Callable
from unittest.mock import ANY, Mock

import pytest
from PIL import Image

from app.errors import (
    BeyondDeadlineError,
    ClientDisconnectedError,
    DeadlineExceededError,
    DeadlineTooShortError,
    DeviceLostError,
    DeviceOutOfMemoryError,
    DrainingError,
    InferenceError,
    QueueFullError,
)
from app.inference.admission import Admission
from app.inference.batching_lock import BatchingLock
from app.inference.engine import Engine, GenerationResult
from app.inference.registry import PipelineRegistry
from app.modes.img2img import Img2ImgParams
from app.modes.txt2img import Txt2ImgParams
from app.pipelines.base import GenerationParams
from tests.conftest import until
from tests.support.clock import Clock
from tests.support.gated_pipeline import GatedPipeline

MakeEngine = Callable[..., Engine]


@pytest.fixture
def losses() -> Mock:
    """What is told of a lost device."""
    return Mock()


@pytest.fixture
async def make_engine(pipeline: GatedPipeline, losses: Mock) -> AsyncIterator[MakeEngine]:
    lock = BatchingLock(hang_limit_s=30)
    async with PipelineRegistry(pipeline.load, lock, warm_up_sizes=[(64, 64)]) as registry:

        def make(*, max_queue: int = 2, deadline_s: float = 30, hang_limit_s: float = 30) -> Engine:
            lock.hang_limit_s = hang_limit_s
            return Engine(
                registry, Admission(registry, max_queue=max_queue, deadline_s=deadline_s), on_device_lost=losses
            )

        yield make
        pipeline.gate.set()


def params(prompt: str = "a cat", seed: int = 0) -> Txt2ImgParams:
    return Txt2ImgParams(prompt=prompt, seed=seed, num_inference_steps=1, width=64, height=64)


async def generate(engine: Engine, *batch: GenerationParams) -> GenerationResult:
    async with engine.admission.admit() as place:
        return await engine.generate(batch or (params(),), place)


async def occupy(engine: Engine, pipeline: GatedPipeline, *, waiting: int) -> list[asyncio.Task[GenerationResult]]:
    """Let one call stop in the pipeline, and so many wait behind it."""
    pipeline.close()
    tasks = [asyncio.create_task(generate(engine, params("running")))]
    await until(lambda: pipeline.calls)
    tasks += [asyncio.create_task(generate(engine, params(f"waiting {i}"))) for i in range(waiting)]
    await until(lambda: engine.admission.waiting == waiting)
    return tasks


async def learn(engine: Engine, pipeline: GatedPipeline, clock: Clock, *, request_s: float) -> None:
    """Have one request take so long, and the engine measure it."""
    tasks = await occupy(engine, pipeline, waiting=0)
    clock.sleep(request_s)
    pipeline.gate.set()
    await asyncio.gather(*tasks)


async def test_a_request_gets_its_pictures_and_its_timings(make_engine: MakeEngine) -> None:
    engine = make_engine()
    result = await generate(engine, params(seed=1), params(seed=2))
    assert [image.pixels.shape for image in result.images] == [(64, 64, 3)] * 2
    for image, seed in zip(result.images, (1, 2), strict=True):
        (alone,) = (await generate(engine, params(seed=seed))).images
        assert (image.pixels == alone.pixels).all()
    assert result.queue_s >= 0
    assert result.inference_s > 0


async def test_the_request_after_the_last_that_may_wait_is_refused(
    make_engine: MakeEngine, pipeline: GatedPipeline
) -> None:
    engine = make_engine(max_queue=2)
    tasks = await occupy(engine, pipeline, waiting=2)
    with pytest.raises(QueueFullError) as caught:
        await generate(engine)
    assert caught.value.retry_after_s is not None
    pipeline.gate.set()
    await asyncio.gather(*tasks)
    assert sum(len(batch) for batch in pipeline.calls) == 3
    await generate(engine)


async def test_several_pictures_take_one_place(make_engine: MakeEngine, pipeline: GatedPipeline) -> None:
    engine = make_engine(max_queue=1)
    tasks = await occupy(engine, pipeline, waiting=0)
    tasks.append(asyncio.create_task(generate(engine, *(params(seed=i) for i in range(4)))))
    await until(lambda: engine.admission.waiting == 1)
    pipeline.gate.set()
    await asyncio.gather(*tasks)
    assert [len(batch) for batch in pipeline.calls] == [1, 4]


async def test_with_no_queue_an_idle_device_still_serves(make_engine: MakeEngine, pipeline: GatedPipeline) -> None:
    engine = make_engine(max_queue=0)
    await generate(engine)
    tasks = await occupy(engine, pipeline, waiting=0)
    with pytest.raises(QueueFullError):
        await generate(engine)
    pipeline.gate.set()
    await asyncio.gather(*tasks)


async def test_retry_after_is_the_queue_times_the_measured_time(
    clock: Clock, make_engine: MakeEngine, pipeline: GatedPipeline
) -> None:
    engine = make_engine(max_queue=3)
    await learn(engine, pipeline, clock, request_s=1.5)
    tasks = await occupy(engine, pipeline, waiting=3)
    with pytest.raises(QueueFullError) as caught:
        await generate(engine)
    assert caught.value.retry_after_s == 6  # 4 x 1.5 s
    pipeline.gate.set()
    await asyncio.gather(*tasks)


async def test_retry_after_leaves_out_what_the_running_call_has_done(
    clock: Clock, make_engine: MakeEngine, pipeline: GatedPipeline
) -> None:
    engine = make_engine(max_queue=1)
    await learn(engine, pipeline, clock, request_s=2.2)
    tasks = await occupy(engine, pipeline, waiting=1)
    clock.sleep(2.2)
    with pytest.raises(QueueFullError) as caught:
        await generate(engine)
    assert caught.value.retry_after_s == 3  # the one that waits, as the other has had its time
    pipeline.gate.set()
    await asyncio.gather(*tasks)


async def test_who_could_not_be_done_by_the_deadline_is_refused(
    clock: Clock, make_engine: MakeEngine, pipeline: GatedPipeline
) -> None:
    engine = make_engine(max_queue=100, deadline_s=27)
    for _ in range(3):
        await learn(engine, pipeline, clock, request_s=6)
    tasks = await occupy(engine, pipeline, waiting=2)  # after these 18 s, another could take 12 s
    with pytest.raises(QueueFullError) as caught:
        await generate(engine)
    assert caught.value.retry_after_s == 18
    pipeline.gate.set()
    await asyncio.gather(*tasks)


async def test_an_idle_device_serves_also_who_can_hardly_be_done_by_the_deadline(
    clock: Clock, make_engine: MakeEngine, pipeline: GatedPipeline
) -> None:
    engine = make_engine(deadline_s=40)
    tasks = await occupy(engine, pipeline, waiting=0)
    clock.sleep(50)
    with pytest.raises(DeadlineExceededError):
        await asyncio.gather(*tasks)
    pipeline.gate.set()
    await until(lambda: not engine.registry.lock.busy)
    await generate(engine)


async def test_retry_after_is_at_most_what_clients_still_heed(
    clock: Clock, make_engine: MakeEngine, pipeline: GatedPipeline
) -> None:
    """The OpenAI SDK does not retry at all after more than 120 s."""
    engine = make_engine(max_queue=200, deadline_s=300)
    await learn(engine, pipeline, clock, request_s=1)
    tasks = await occupy(engine, pipeline, waiting=200)
    with pytest.raises(QueueFullError) as caught:
        await generate(engine)
    assert caught.value.retry_after_s == 120
    for task in tasks:
        task.cancel()
    pipeline.gate.set()


async def test_giving_up_tells_everybody_who_is_in_that_the_service_stops(
    make_engine: MakeEngine, pipeline: GatedPipeline
) -> None:
    engine = make_engine()
    tasks = await occupy(engine, pipeline, waiting=2)
    engine.admission.drain()
    engine.admission.give_up()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [DrainingError] * 3
    assert engine.admission.in_flight == 0


async def test_giving_up_at_the_very_moment_of_a_deadline_breaks_nothing(
    make_engine: MakeEngine, pipeline: GatedPipeline
) -> None:
    engine = make_engine(deadline_s=0.1)
    pipeline.close()
    loop = asyncio.get_running_loop()
    gave_up = loop.create_future()
    async with asyncio.TaskGroup() as tasks:
        request = tasks.create_task(_expect_to_be_told(engine))
        await asyncio.sleep(0)
        loop.call_at(loop.time() + 0.11, lambda: gave_up.set_result(engine.admission.give_up()))  # type: ignore[func-returns-value] # what it raises would be lost in a callback without a future
        await asyncio.sleep(0.05)
        time.sleep(0.1)  # noqa: ASYNC251 - late for both timers, the loop runs them in one pass
        await asyncio.wait_for(gave_up, timeout=5)
    assert request.result() in (DeadlineExceededError, DrainingError)


async def _expect_to_be_told(engine: Engine) -> type[Exception]:
    with pytest.raises((DeadlineExceededError, DrainingError)) as caught:
        await generate(engine)
    return caught.type


async def test_calls_that_are_given_up_count_towards_the_measured_time(
    clock: Clock, make_engine: MakeEngine, pipeline: GatedPipeline
) -> None:
    engine = make_engine(max_queue=0, deadline_s=20)
    tasks = await occupy(engine, pipeline, waiting=0)
    clock.sleep(21)
    with pytest.raises(DeadlineExceededError):
        await asyncio.gather(*tasks)
    clock.sleep(30)
    pipeline.gate.set()
    await until(lambda: not engine.registry.lock.busy)
    tasks = await occupy(engine, pipeline, waiting=0)
    with pytest.raises(QueueFullError) as caught:
        await generate(engine)
    assert caught.value.retry_after_s == 51
    pipeline.gate.set()
    await asyncio.gather(*tasks)


async def test_a_request_past_its_deadline_is_given_up_and_the_next_is_served(
    clock: Clock, make_engine: MakeEngine, pipeline: GatedPipeline
) -> None:
    engine = make_engine(deadline_s=20)
    tasks = await occupy(engine, pipeline, waiting=0)
    clock.sleep(21)
    with pytest.raises(DeadlineExceededError):
        await asyncio.gather(*tasks)
    assert engine.admission.in_flight == 0
    pipeline.gate.set()
    await until(lambda: not engine.registry.lock.busy)
    await generate(engine)
    assert pipeline.peak == 1


async def test_waiting_past_the_deadline_costs_the_device_nothing(
    clock: Clock, make_engine: MakeEngine, pipeline: GatedPipeline
) -> None:
    engine = make_engine(deadline_s=20)
    tasks = await occupy(engine, pipeline, waiting=2)
    clock.sleep(21)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [DeadlineExceededError] * 3
    pipeline.gate.set()
    await until(lambda: not engine.registry.lock.busy)
    await generate(engine, params("last"))
    assert pipeline.prompts == ["running", "last"]


async def test_a_waiter_that_leaves_frees_its_place_and_costs_the_device_nothing(
    make_engine: MakeEngine, pipeline: GatedPipeline
) -> None:
    engine = make_engine(max_queue=1)
    running, waiting = await occupy(engine, pipeline, waiting=1)
    waiting.cancel()
    await until(lambda: engine.admission.waiting == 0)
    following = asyncio.create_task(generate(engine, params("following")))
    await until(lambda: engine.admission.waiting == 1)
    pipeline.gate.set()
    await asyncio.gather(running, following)
    assert pipeline.prompts == ["running", "following"]


async def test_draining_admits_nobody_and_finishes_who_is_in(make_engine: MakeEngine, pipeline: GatedPipeline) -> None:
    engine = make_engine()
    tasks = await occupy(engine, pipeline, waiting=1)
    engine.admission.drain()
    assert engine.status != "ready"
    assert engine.live
    with pytest.raises(DrainingError):
        await generate(engine)
    pipeline.gate.set()
    assert len(await asyncio.gather(*tasks)) == 2
    assert engine.admission.in_flight == 0


async def test_an_error_of_the_pipeline_is_this_request_s_alone(
    make_engine: MakeEngine, pipeline: GatedPipeline
) -> None:
    engine = make_engine()
    pipeline.error = KeyError("secret")
    with pytest.raises(InferenceError) as caught:
        await generate(engine)
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)
    pipeline.error = None
    await generate(engine)
    assert engine.status == "ready"


async def test_out_of_memory_is_passed_on_and_the_next_request_is_served(
    make_engine: MakeEngine, pipeline: GatedPipeline
) -> None:
    engine = make_engine()
    pipeline.error = DeviceOutOfMemoryError("too large", retry_after_s=5)
    with pytest.raises(DeviceOutOfMemoryError):
        await generate(engine)
    pipeline.error = None
    await generate(engine)


async def test_after_a_lost_device_nothing_reaches_it_any_more(
    make_engine: MakeEngine, pipeline: GatedPipeline, losses: Mock
) -> None:
    engine = make_engine()
    tasks = await occupy(engine, pipeline, waiting=2)
    pipeline.error = DeviceLostError("gone")
    pipeline.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [DeviceLostError] * 3
    assert pipeline.prompts == ["running"]
    with pytest.raises(DeviceLostError):
        await generate(engine)
    assert not engine.live
    assert engine.status != "ready"
    losses.assert_called_once_with(ANY)


async def test_a_device_that_is_lost_when_nobody_waits_any_more_is_lost_too(
    make_engine: MakeEngine, pipeline: GatedPipeline, losses: Mock
) -> None:
    engine = make_engine()
    (task,) = await occupy(engine, pipeline, waiting=0)
    task.cancel()
    pipeline.error = DeviceLostError("gone")
    pipeline.gate.set()
    await until(lambda: losses.called)
    with pytest.raises(DeviceLostError, match="gone"):
        await generate(engine)


async def test_a_lost_device_is_not_touched_any_more(make_engine: MakeEngine, pipeline: GatedPipeline) -> None:
    engine = make_engine()
    calls, checks = len(pipeline.calls), pipeline.device.checks
    engine.lose_device(DeviceLostError("gone"))
    with pytest.raises(DeviceLostError, match="gone"):
        await engine.check_device()
    with pytest.raises(DeviceLostError, match="gone"):
        await generate(engine)
    assert (len(pipeline.calls), pipeline.device.checks) == (calls, checks)


async def test_a_request_that_has_its_pictures_is_finished_when_the_device_is_lost(
    make_engine: MakeEngine, losses: Mock
) -> None:
    engine = make_engine()
    async with engine.admission.admit() as place:
        result = await engine.generate([params()], place)
        engine.lose_device(DeviceLostError())
        await asyncio.sleep(0.01)  # where an encoder would be at work
        assert result.images
    losses.assert_called_once_with(ANY)


async def test_requests_that_wait_are_told_at_once_when_the_device_is_lost_though_its_call_never_returns(
    make_engine: MakeEngine, pipeline: GatedPipeline
) -> None:
    engine = make_engine()
    tasks = await occupy(engine, pipeline, waiting=2)
    engine.lose_device(DeviceLostError("hung"))
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [(type(result), str(result)) for result in results] == [(DeviceLostError, "hung")] * 3
    assert engine.admission.in_flight == 0


async def test_a_call_for_several_pictures_may_take_the_limit_for_each(
    clock: Clock, make_engine: MakeEngine, pipeline: GatedPipeline
) -> None:
    engine = make_engine(hang_limit_s=0.2)
    pipeline.gate.clear()
    call = asyncio.create_task(generate(engine, params(), params(), params(), params()))
    await until(lambda: engine.registry.lock.busy)
    clock.sleep(0.7)
    assert engine.live
    clock.sleep(0.2)
    assert engine.status == "hung"
    pipeline.gate.set()
    await call


async def test_a_second_try_has_the_whole_limit_again(
    clock: Clock, make_engine: MakeEngine, pipeline: GatedPipeline
) -> None:
    engine = make_engine(hang_limit_s=30)
    tasks = await occupy(engine, pipeline, waiting=0)
    clock.sleep(20)
    assert engine.registry.lock.running_s == 20
    pipeline.errors = [DeviceOutOfMemoryError("full")]
    slow = threading.Event()
    pipeline.device.free_memory = lambda: slow.wait(60)  # type: ignore[method-assign,assignment]
    pipeline.gate.set()
    await until(lambda: engine.registry.lock.running_s == 0)
    assert engine.registry.lock.busy
    slow.set()
    await asyncio.gather(*tasks)


async def test_a_check_takes_no_request_s_place(make_engine: MakeEngine, pipeline: GatedPipeline) -> None:
    engine = make_engine(max_queue=0)
    checked = threading.Event()
    pipeline.device.check = lambda: checked.wait(60)  # type: ignore[method-assign,assignment]
    check = asyncio.create_task(engine.check_device())
    await until(lambda: engine.registry.lock.running_s > 0)
    engine.admission.check()
    checked.set()
    await check


async def test_what_becomes_of_a_lost_device_later_does_not_hide_how_it_was_lost(
    make_engine: MakeEngine, losses: Mock, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine()
    engine.lose_device(DeviceLostError("it did not return"))
    engine.lose_device(DeviceLostError("error 507014"))
    with pytest.raises(DeviceLostError, match="it did not return"):
        engine.admission.check()
    assert "error 507014" in caplog.text
    losses.assert_called_once_with(ANY)


async def test_a_call_past_the_hang_limit_is_noticed_while_it_runs(
    clock: Clock, make_engine: MakeEngine, pipeline: GatedPipeline
) -> None:
    engine = make_engine(hang_limit_s=0.1)
    tasks = await occupy(engine, pipeline, waiting=0)
    clock.sleep(0.2)
    assert engine.status == "hung"
    assert not engine.live
    pipeline.gate.set()
    await asyncio.gather(*tasks)
    assert engine.live


async def test_requests_that_wait_are_served_by_one_call_and_each_gets_its_own_pictures(
    make_engine: MakeEngine, pipeline: GatedPipeline
) -> None:
    engine = make_engine(max_queue=8)
    alone = (await generate(engine, params("waiting 1"))).images[0].pixels
    tasks = await occupy(engine, pipeline, waiting=3)
    pipeline.gate.set()
    running, *waiting = await asyncio.gather(*tasks)
    assert [len(batch) for batch in pipeline.calls] == [1, 3]
    assert (running.batch_pictures, [result.batch_pictures for result in waiting]) == (1, [3, 3, 3])
    assert (waiting[1].images[0].pixels == alone).all()
    assert len({result.images[0].pixels.tobytes() for result in waiting}) == 3


async def test_only_requests_of_the_same_mode_size_steps_and_strength_share_a_call(
    make_engine: MakeEngine, pipeline: GatedPipeline
) -> None:
    engine = make_engine(max_queue=20)
    first = params()
    start = Image.new("RGB", (64, 64))
    painted = Img2ImgParams(prompt="a", seed=1, num_inference_steps=2, strength=0.5, image=start)
    kinds: list[GenerationParams] = [
        first,
        dataclasses.replace(first, width=72),
        dataclasses.replace(first, height=72),
        dataclasses.replace(first, num_inference_steps=2),
        painted,
        dataclasses.replace(painted, strength=1.0),
        dataclasses.replace(painted, num_inference_steps=4),
        dataclasses.replace(painted, image=Image.new("RGB", (72, 64))),
    ]
    tasks = await occupy(engine, pipeline, waiting=0)
    for kind in kinds * 2:
        tasks.append(asyncio.create_task(generate(engine, kind)))
    await until(lambda: engine.admission.waiting == 16)
    pipeline.gate.set()
    await asyncio.gather(*tasks)
    served = [[params.batch_key for params in batch] for batch in pipeline.calls[1:]]
    assert served == [[kind.batch_key] * 2 for kind in kinds]


async def test_seven_of_eight_succeed_when_one_is_poisoned(make_engine: MakeEngine, pipeline: GatedPipeline) -> None:
    engine = make_engine(max_queue=8)
    tasks = await occupy(engine, pipeline, waiting=0)
    pipeline.poison = {5: KeyError("secret")}
    tasks += [asyncio.create_task(generate(engine, params(seed=seed))) for seed in range(8)]
    await until(lambda: engine.admission.waiting == 8)
    pipeline.gate.set()
    _, *results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [GenerationResult] * 5 + [InferenceError] + [GenerationResult] * 2
    assert [len(batch) for batch in pipeline.calls] == [1, 8, *[1] * 8]
    pipeline.poison = {}
    await generate(engine)


async def test_a_client_that_leaves_takes_only_its_own_request_out_of_the_batch(
    make_engine: MakeEngine, pipeline: GatedPipeline
) -> None:
    engine = make_engine(max_queue=8)
    running, gone, staying, late = await occupy(engine, pipeline, waiting=3)
    gone.cancel()
    await until(lambda: engine.admission.waiting == 2)
    pipeline.gate.set()
    await running
    await until(lambda: len(pipeline.calls) == 2)
    late.cancel()
    assert (await staying).batch_pictures == 2
    assert [params.prompt for params in pipeline.calls[1]] == ["waiting 1", "waiting 2"]


async def test_the_measured_time_of_a_call_is_shared_by_the_requests_that_it_serves(
    clock: Clock, make_engine: MakeEngine, pipeline: GatedPipeline
) -> None:
    engine = make_engine(max_queue=8)
    tasks = await occupy(engine, pipeline, waiting=8)
    pipeline.gate.set()
    await tasks[0]
    pipeline.gate.clear()
    await until(lambda: len(pipeline.calls) == 2)
    clock.sleep(1.6)  # of eight requests: 0.2 s each
    pipeline.gate.set()
    await asyncio.gather(*tasks)
    tasks = await occupy(engine, pipeline, waiting=8)
    with pytest.raises(QueueFullError) as caught:
        await generate(engine)
    assert caught.value.retry_after_s == 1  # 9 x 0.2 s, less what is learned slowly; a call each would be 4
    pipeline.gate.set()
    await asyncio.gather(*tasks)


# What a request costs.

UNIT_S = 1
"""Seconds of a picture of 512x512 in one step; others take as many times that as they have more pixels and steps."""


def pixels_times_steps(params: GenerationParams) -> float:
    return params.width * params.height * params.effective_steps / 512**2


def sized(prompt: str, side: int = 512, steps: int = 1, seed: int = 0) -> Txt2ImgParams:
    return Txt2ImgParams(prompt=prompt, seed=seed, num_inference_steps=steps, width=side, height=side)


def large(prompt: str = "large") -> Txt2ImgParams:
    """A picture that takes 16 times the unit."""
    return sized(prompt, 1024, steps=4)


def proportional(clock: Clock) -> GatedPipeline:
    return GatedPipeline(unit_s=UNIT_S, work=pixels_times_steps, sleep=clock.sleep)


@contextlib.asynccontextmanager
async def measuring(
    pipeline: GatedPipeline, *, deadline_s: float = 60, max_queue: int = 100, hang_limit_s: float = 30
) -> AsyncIterator[Engine]:
    """An engine that was warmed up at 512x512 with a pipeline whose calls take time."""
    lock = BatchingLock(hang_limit_s=hang_limit_s)
    async with PipelineRegistry(pipeline.load, lock, warm_up_sizes=[(512, 512)]) as registry:
        try:
            yield Engine(
                registry, Admission(registry, max_queue=max_queue, deadline_s=deadline_s), on_device_lost=Mock()
            )
        finally:
            pipeline.gate.set()


async def busy_with(
    engine: Engine, pipeline: GatedPipeline, *kinds: Txt2ImgParams
) -> list[asyncio.Task[GenerationResult]]:
    """Let a call for the first stop in the pipeline, and the others wait behind it."""
    pipeline.close()
    tasks = [asyncio.create_task(generate(engine, kinds[0]))]
    await until(lambda: pipeline.calls)
    tasks += [asyncio.create_task(generate(engine, kind)) for kind in kinds[1:]]
    await until(lambda: engine.admission.waiting == len(kinds) - 1)
    return tasks


async def refused(engine: Engine, *request: GenerationParams) -> int | None:
    """What Retry-After says to a request for which the queue is too long."""
    with pytest.raises(QueueFullError) as caught:
        await generate(engine, *request)
    return caught.value.retry_after_s


async def test_what_the_device_cannot_do_by_the_deadline_is_refused_at_once_and_not_run(clock: Clock) -> None:
    pipeline = proportional(clock)
    async with measuring(pipeline, deadline_s=8) as engine:
        pipeline.calls.clear()
        with pytest.raises(BeyondDeadlineError, match=r"take 128\.0 s on this device, and a request may take 80 s"):
            await generate(engine, *[large() for _ in range(8)])
        with pytest.raises(BeyondDeadlineError):
            await generate(engine, *[sized("many", seed=seed) for seed in range(120)])
        assert pipeline.calls == []
        assert engine.admission.in_flight == 0
        await generate(engine, sized("small", 768))


async def test_a_request_for_more_work_may_take_longer(clock: Clock) -> None:
    pipeline = proportional(clock)
    async with measuring(pipeline, deadline_s=8) as engine:
        for request in ([large()], [sized("many", seed=seed) for seed in range(10)]):
            assert len((await generate(engine, *request)).images) == len(request)
        pipeline.close()
        waiting = asyncio.create_task(generate(engine, *[sized("many", seed=seed) for seed in range(10)]))
        await until(lambda: pipeline.calls)
        clock.sleep(18)  # 8 s for one picture, 1 s for each further one
        with pytest.raises(DeadlineExceededError, match="not done within 17 s"):
            await waiting


async def test_a_kind_that_took_longer_than_expected_has_more_time_next_time(clock: Clock) -> None:
    """Where the estimate was too low: the call that nobody waited for was measured all the same."""
    pipeline = GatedPipeline(unit_s=10, work=lambda params: 0.1 if params.width == 512 else 1, sleep=clock.sleep)
    pipeline_of_work = dataclasses.replace(pipeline.load(), work=lambda _: 1.0)
    lock = BatchingLock(hang_limit_s=30)
    async with PipelineRegistry(lambda: pipeline_of_work, lock, warm_up_sizes=[(512, 512)]) as registry:
        engine = Engine(registry, Admission(registry, max_queue=2, deadline_s=6), on_device_lost=Mock())
        with pytest.raises(DeadlineExceededError):
            await generate(engine, sized("slow", 768))
        await until(lambda: not engine.registry.lock.busy)
        assert (await generate(engine, sized("slow", 768))).images


async def test_a_slow_measurement_at_the_start_does_not_refuse_large_requests_for_good(clock: Clock) -> None:
    pipeline = proportional(clock)
    pipeline.unit_s = 10  # the machine is busy with other things
    async with measuring(pipeline, deadline_s=11) as engine:
        pipeline.unit_s = UNIT_S
        pipeline.calls.clear()
        with pytest.raises(BeyondDeadlineError):
            await generate(engine, large())
        clock.sleep(61)
        with pytest.raises(BeyondDeadlineError):  # and the idle device is measured again
            await generate(engine, large())
        await until(lambda: pipeline.calls)
        await until(lambda: not engine.registry.lock.busy)
        assert (await generate(engine, large())).images
    assert pipeline.calls[-2][0].width == 512


async def test_a_large_request_does_not_spoil_what_is_expected_of_small_ones(clock: Clock) -> None:
    pipeline = proportional(clock)
    async with measuring(pipeline, max_queue=3) as engine:
        await generate(engine, large())
        tasks = await busy_with(engine, pipeline, *[sized(f"small {n}") for n in range(4)])
        assert await refused(engine, sized("one more")) == 4  # 4 x 1 s; if each took as long as the large one, 60
        pipeline.gate.set()
        await asyncio.gather(*tasks)


async def test_a_small_request_is_let_in_behind_a_large_one_though_a_large_one_was_the_first_ever(clock: Clock) -> None:
    pipeline = proportional(clock)
    async with measuring(pipeline, deadline_s=36) as engine:
        await generate(engine, large())
        tasks = await busy_with(engine, pipeline, large("running"))
        tasks.append(asyncio.create_task(generate(engine, sized("small"))))
        await until(lambda: engine.admission.waiting == 1)
        pipeline.gate.set()
        await asyncio.gather(*tasks)


async def test_small_requests_do_not_spoil_what_is_expected_of_large_ones(clock: Clock) -> None:
    """A small picture takes many times its share of the pixels."""
    pipeline = GatedPipeline(unit_s=UNIT_S, work=lambda params: max(0.5, pixels_times_steps(params)), sleep=clock.sleep)
    loaded = dataclasses.replace(pipeline.load(), work=pixels_times_steps)
    lock = BatchingLock(hang_limit_s=30)
    async with PipelineRegistry(lambda: loaded, lock, warm_up_sizes=[(512, 512)]) as registry:
        engine = Engine(registry, Admission(registry, max_queue=9, deadline_s=40), on_device_lost=Mock())
        for n in range(5):
            await generate(engine, sized(f"tiny {n}", 64))
        tasks = await busy_with(engine, pipeline, sized("tiny", 64))
        tasks.append(asyncio.create_task(generate(engine, large())))
        await until(lambda: engine.admission.waiting == 1)
        pipeline.gate.set()
        await asyncio.gather(*tasks)


async def test_those_who_wait_count_by_what_they_asked_for(clock: Clock) -> None:
    pipeline = proportional(clock)
    async with measuring(pipeline, max_queue=2) as engine:
        tasks = await busy_with(engine, pipeline, sized("running"), large(), large("another"))
        assert await refused(engine, sized("small")) == 33  # 1 s and 2 x 16 s
        pipeline.gate.set()
        await asyncio.gather(*tasks)


async def test_a_request_that_could_not_be_done_after_the_others_is_told_when_those_are_done(
    clock: Clock,
) -> None:
    pipeline = proportional(clock)
    async with measuring(pipeline, deadline_s=25) as engine:
        tasks = await busy_with(engine, pipeline, sized("running"), large(), large())
        assert await refused(engine, large("another")) == 33  # its 40 s are too few for 33 s and its own 16 s
        assert await refused(engine, sized("another")) == 33
        pipeline.gate.set()
        await asyncio.gather(*tasks)
        assert "another" not in pipeline.prompts


async def test_a_call_that_cannot_be_done_in_the_time_that_is_left_is_not_started(clock: Clock) -> None:
    pipeline = GatedPipeline(unit_s=3, sleep=clock.sleep)
    async with measuring(pipeline, deadline_s=20) as engine:
        running, waiting = await busy_with(engine, pipeline, sized("running"), sized("waiting"))
        running.cancel()
        clock.sleep(15)
        pipeline.gate.set()  # and the running call ends 2 s before the deadline
        with pytest.raises(DeadlineExceededError):
            await waiting
        await until(lambda: not engine.registry.lock.busy)
        assert pipeline.prompts == ["running"]
        await generate(engine, sized("next"))


async def test_nobody_is_taken_along_who_would_make_the_others_too_late(clock: Clock) -> None:
    pipeline = GatedPipeline(unit_s=4, sleep=clock.sleep)
    async with measuring(pipeline, deadline_s=30) as engine:
        tasks = await busy_with(engine, pipeline, sized("running"), sized("first"))
        clock.sleep(15)
        tasks += [asyncio.create_task(generate(engine, sized(f"later {n}"))) for n in range(4)]
        await until(lambda: engine.admission.waiting == 5)
        pipeline.gate.set()  # and 4 s later 11 s are left for the first: two fit
        results = await asyncio.gather(*tasks[:2], return_exceptions=True)
        assert [type(result) for result in results] == [GenerationResult] * 2
        assert len(pipeline.calls[1]) == 2
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_rest_of_the_pictures_of_a_client_that_left_is_not_made() -> None:
    pipeline = GatedPipeline(max_batch=1)
    async with measuring(pipeline) as engine:
        pipeline.close()
        task = asyncio.create_task(generate(engine, *[params(seed=seed) for seed in range(4)]))
        await until(lambda: pipeline.calls)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        pipeline.gate.set()
        await until(lambda: not engine.registry.lock.busy)
        assert len(pipeline.calls) == 1


async def test_a_client_that_leaves_before_the_device_thread_begins_costs_no_call(
    make_engine: MakeEngine, pipeline: GatedPipeline
) -> None:
    engine = make_engine()
    async with engine.admission.admit() as place:
        pass
    calls = len(pipeline.calls)
    with pytest.raises(ClientDisconnectedError):
        await engine.generate([params()], place)
    assert len(pipeline.calls) == calls


async def test_a_request_that_was_ended_while_it_was_read_is_told_why(make_engine: MakeEngine) -> None:
    engine = make_engine()
    async with engine.admission.admit() as place:
        engine.lose_device(DeviceLostError("gone"))
        with pytest.raises(DeviceLostError, match="gone"):
            await engine.generate([params()], place)
        place.time_left.reschedule(None)  # or it would be told once more


async def test_a_legal_request_is_not_taken_for_a_call_that_hangs_however_large_it_is(clock: Clock) -> None:
    pipeline = proportional(clock)
    async with measuring(pipeline, deadline_s=200, hang_limit_s=0.1) as engine:
        pipeline.close()
        task = asyncio.create_task(generate(engine, large(), large(), large()))
        await until(lambda: pipeline.calls)
        clock.sleep(3 * 16)
        assert engine.status == "ready"
        pipeline.gate.set()
        assert (await task).images


async def test_a_call_that_hangs_is_found_though_another_size_took_long_for_its_first_call(clock: Clock) -> None:
    pipeline = GatedPipeline(unit_s=0.02, work=lambda params: 50 if params.width == 64 else 1, sleep=clock.sleep)
    loaded = dataclasses.replace(pipeline.load(), work=pixels_times_steps, first_call_is_slow=True)
    lock = BatchingLock(hang_limit_s=0.3)
    async with PipelineRegistry(lambda: loaded, lock, warm_up_sizes=[(512, 512)]) as registry:
        engine = Engine(registry, Admission(registry, max_queue=2, deadline_s=30), on_device_lost=Mock())
        await generate(engine, sized("compiles", 64))
        tasks = await busy_with(engine, pipeline, sized("hangs"))
        clock.sleep(0.5)
        assert engine.status == "hung"
        pipeline.gate.set()
        await asyncio.gather(*tasks)


async def test_a_deadline_that_is_too_short_for_the_warm_up_s_picture_fails_the_start(clock: Clock) -> None:
    async with measuring(GatedPipeline(unit_s=0.2, sleep=clock.sleep), deadline_s=0.1) as engine:
        with pytest.raises(DeadlineTooShortError, match=r"takes 0\.2 s on this device, and TURBO_DEADLINE_S is 0\.1"):
            engine.admission.check_deadline()
    async with measuring(GatedPipeline(unit_s=0.2, sleep=clock.sleep), deadline_s=0.3) as engine:
        engine.admission.check_deadline()
