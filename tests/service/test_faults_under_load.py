"""A failing device and a dying process under load: each request gets exactly one response, and a correct one."""

import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from app.errors import DeadPictureError, DeviceLostError, DeviceOutOfMemoryError
from app.main import create_app
from app.settings import Settings
from benchmarks.support.ports import free_port
from tests.conftest import StartServer, serving, wait_until
from tests.support.crowd import (
    CLIENTS,
    Persistence,
    Wish,
    alike,
    answered,
    ask_all,
    batches_of,
    device_calls,
    pictures,
    supervised,
    wishes,
)
from tests.support.gated_pipeline import GatedPipeline

CHILD = "from tests.support import child"
DEVICE_LOST, KILLED = 4, -signal.SIGKILL
WORK = wishes(1001, CLIENTS)
"""Requests before and after a fault, to check that the service batches them the same way."""


def assert_right_or_said(asked: list[Wish], answers: list[httpx.Response], *said: tuple[int, str]) -> None:
    """Assert that each response has the pictures of its own wish, or is one of the errors `said`."""
    for wish, answer in zip(asked, answers, strict=True):
        if answer.status_code == 200:
            assert alike(pictures(answer), wish.painted()), f"{wish} got another request's pictures"
        else:
            assert (answer.status_code, answer.json()["code"]) in said, answer.text
            assert answer.status_code != 503 or int(answer.headers["retry-after"]) >= 1


def batches(url: str, pipeline: GatedPipeline) -> Counter[str]:
    return batches_of(url, WORK, hold=pipeline.gate.clear, let_go=pipeline.gate.set)


# Faults that the process survives.


def test_when_memory_runs_short_everybody_gets_their_pictures_or_is_told_and_all_is_as_before(
    pipeline: GatedPipeline,
) -> None:
    asked = wishes(1, 10 * CLIENTS)
    with serving(create_app(Settings(model="fake"), load_pipelines=pipeline.load)) as url:
        before = batches(url, pipeline)
        pairs = 0
        with ThreadPoolExecutor(1) as background:
            crowd = background.submit(ask_all, url, asked)
            while pairs < 6 and not crowd.done():
                pairs += 1
                pipeline.errors += [
                    DeviceOutOfMemoryError("No memory.", retry_after_s=1)
                ] * 2  # one for a batch, one for the retry of a single request
                wait_until(lambda: not pipeline.errors or crowd.done())
                calls = device_calls(url)  # the next pair is for another call, not for this one's further retries
                wait_until(lambda: device_calls(url) > calls or crowd.done())  # noqa: B023 - called at once
            answers = crowd.result()
        faults = 2 * pairs - len(pipeline.errors)
        pipeline.errors.clear()
        assert faults >= 2
        assert answered(url) == Counter(answer.status_code for answer in answers) + Counter({200: len(WORK)})
        assert_right_or_said(asked, answers, (503, "out_of_memory"))
        assert 0 < sum(answer.status_code == 503 for answer in answers) <= pairs
        assert batches(url, pipeline) == before
    assert faults / 2 <= pipeline.device.times_freed <= faults


def test_a_request_that_fails_among_others_fails_alone_and_all_is_as_before(pipeline: GatedPipeline) -> None:
    asked = wishes(1, 10 * CLIENTS)
    poisoned = asked[::10]
    pipeline.poison = {wish.seed: DeadPictureError("That is no picture.") for wish in poisoned}
    pipeline.poison[poisoned[-1].seed] = RuntimeError("what nobody has seen before")
    with serving(create_app(Settings(model="fake"), load_pipelines=pipeline.load)) as url:
        before = batches(url, pipeline)
        answers = ask_all(url, asked)
        assert answered(url) == Counter(answer.status_code for answer in answers) + Counter({200: len(WORK)})
        assert_right_or_said(asked, answers, (500, "dead_picture"), (500, "inference_failed"))
        assert [wish for wish, answer in zip(asked, answers, strict=True) if answer.status_code == 500] == poisoned
        assert max(map(len, pipeline.calls)) > 1, "no requests shared a call"
        assert batches(url, pipeline) == before


# Faults that end the process.


@pytest.mark.parametrize("fault", ["lost", "hang"])
def test_when_the_device_is_lost_everybody_is_answered_once_and_nobody_with_a_picture_of_after(
    pipeline: GatedPipeline, fault: str
) -> None:
    asked = wishes(1, 10 * CLIENTS)
    losses: list[int] = []
    app = create_app(
        Settings(model="fake", hang_limit_s=3),  # longer than a busy machine may pause
        load_pipelines=pipeline.load,
        on_device_lost=lambda: losses.append(len(pipeline.calls)),
    )
    with serving(app) as url:
        with ThreadPoolExecutor(1) as background:
            crowd = background.submit(ask_all, url, asked)
            while len(pipeline.calls) < 20:
                assert not losses, "the machine paused for longer than a call may take"
                time.sleep(0.001)
            if fault == "lost":
                pipeline.device.error = DeviceLostError("The device fell off the bus.")
            else:
                pipeline.gate.clear()
            answers = crowd.result()
        pipeline.gate.set()
        assert answered(url) == Counter(answer.status_code for answer in answers)
        assert_right_or_said(asked, answers, (503, "device_lost"))
        assert {answer.status_code for answer in answers} == {200, 503}
        assert [httpx.get(f"{url}/healthz/{probe}").status_code for probe in ("live", "ready")] == [503, 503]
    assert losses == [len(pipeline.calls)], "the device was used after its loss"


@pytest.mark.parametrize(("fault", "code"), [("lost", DEVICE_LOST), ("hang", DEVICE_LOST), ("killed", KILLED)])
def test_under_a_supervisor_everybody_is_served_in_the_end_and_the_new_process_is_as_the_first(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, fault: str, code: int
) -> None:
    monkeypatch.setenv("FAULT", fault)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    persist = Persistence()
    with supervised(
        lambda: start_server(prelude=CHILD, model="fake", port=port, hang_limit_s=1, drain_s=5)
    ) as supervisor:
        first = supervisor.server
        first.wait_until_started()

        def turn() -> None:
            os.kill(supervisor.server.process.pid, signal.SIGUSR2)
            time.sleep(0.1)

        before = batches_of(url, WORK, hold=turn, let_go=turn)
        asked = wishes(1, 10 * CLIENTS)
        with ThreadPoolExecutor(1) as background:
            crowd = background.submit(ask_all, url, asked, send=persist)
            while answered(url).total() < len(WORK) + 5 * CLIENTS:
                time.sleep(0.01)
            persist.through_failures()
            os.kill(first.process.pid, signal.SIGKILL if fault == "killed" else signal.SIGUSR1)
            answers = crowd.result()
        assert_right_or_said(asked, answers)
        assert {answer.json()["code"] for answer in persist.refusals} <= {"device_lost", "draining"}
        assert supervisor.exit_codes == [code]
        assert batches_of(url, WORK, hold=turn, let_go=turn) == before
