"""A simulated NPU that fails under load. tests/service/test_faults_under_load.py does the same with the fake."""

import math
import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from benchmarks.support.ports import free_port
from tests.conftest import StartServer
from tests.npu.conftest import service_on_npu
from tests.npu.simulator import Npu
from tests.npu.test_faults import CHILD, DEVICE_LOST
from tests.support.crowd import (
    CLIENTS,
    Persistence,
    Wish,
    alike,
    answered,
    ask_all,
    batches_of,
    pictures,
    supervised,
    wishes,
)

WORK = wishes(1, CLIENTS)


def painted_by(url: str) -> dict[Wish, list[Image.Image]]:
    """The pictures that a service without faults makes for `WORK`."""
    with httpx.Client(base_url=url, timeout=60) as client:
        return {wish: pictures(wish.send(client)) for wish in WORK}


@pytest.mark.usefixtures("any_batch_pays")
def test_whatever_the_process_outlives_everybody_gets_their_pictures_or_is_told_and_all_is_as_before(
    npu: Npu, tiny_folder: Path
) -> None:
    with service_on_npu(model=str(tiny_folder), batching="fast", max_batch=4) as service:
        url = str(service.client.base_url)
        painted = painted_by(url)
        held = threading.Event()

        def hold() -> None:
            held.clear()
            npu.hang = held

        def let_go() -> None:
            npu.hang = None
            held.set()

        before, total = batches_of(url, WORK, hold=hold, let_go=let_go), answered(url)
        with ThreadPoolExecutor(1) as background:
            crowd = background.submit(ask_all, url, WORK * 2)
            while answered(url).total() < total.total() + CLIENTS // 2:
                npu.allocations_to_fail = 2  # one for a batch, one for the retry of a single picture
                time.sleep(0.1)
            npu.allocations_to_fail = 0
            npu.picture_value = math.nan
            while 500 not in answered(url):
                time.sleep(0.05)
            npu.picture_value = None
            answers = crowd.result()
        assert answered(url) - total == Counter(answer.status_code for answer in answers)
        for wish, answer in zip(WORK * 2, answers, strict=True):
            if answer.status_code == 200:
                assert alike(pictures(answer), painted[wish], levels=1), f"{wish} got another request's pictures"
            else:
                assert (answer.status_code, answer.json()["code"]) in ((503, "out_of_memory"), (500, "dead_picture"))
        assert {200, 500, 503} == {answer.status_code for answer in answers}
        assert batches_of(url, WORK, hold=hold, let_go=let_go) == before
    assert service.losses == []


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("error", DEVICE_LOST),
        pytest.param("killed", -signal.SIGKILL, marks=[pytest.mark.long, pytest.mark.only_long]),
    ],
)
def test_under_a_supervisor_everybody_is_served_in_the_end_by_a_sound_process(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, fault: str, code: int
) -> None:
    monkeypatch.setenv("NPU_FAULT", fault)
    port, persist = free_port(), Persistence()
    url = f"http://127.0.0.1:{port}"
    settings = {"model": str(tiny_folder), "device": "npu", "dtype": "fp32", "warm_up_sizes": "64x64", "max_batch": 1}
    with supervised(lambda: start_server(prelude=CHILD, on_npu=True, port=port, drain_s=5, **settings)) as supervisor:
        first = supervisor.server
        first.wait_until_started()
        painted = painted_by(url)
        with ThreadPoolExecutor(1) as background:
            crowd = background.submit(ask_all, url, WORK, send=persist)
            while answered(url).total() < len(WORK) + 3:
                time.sleep(0.05)
            persist.through_failures()
            os.kill(first.process.pid, signal.SIGKILL if fault == "killed" else signal.SIGUSR1)
            answers = crowd.result()
        for wish, answer in zip(WORK, answers, strict=True):
            assert alike(pictures(answer), painted[wish]), f"{wish} got another request's pictures"
        assert {answer.json()["code"] for answer in persist.refusals} <= {"device_lost", "draining"}
        assert supervisor.exit_codes == [code]
