"""The known faults of an NPU, injected into the running service and observed over HTTP."""

import contextlib
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest
import torch

from tests.conftest import ServerProcess, StartServer, png, wait_for_queue
from tests.npu.conftest import Service, asking, service_on_npu
from tests.npu.simulator import INNER_ERROR, Npu

CHILD = "from tests.npu import child"
DEVICE_LOST = 4


def assert_lost(service: Service, response: httpx.Response) -> None:
    """This request, later requests and the probes report the loss, and the callback was called once."""
    assert (response.status_code, response.json()["code"]) == (503, "device_lost"), response.text
    assert response.headers["retry-after"] == "30"
    assert service.health() == (503, 503, "device_lost")
    for later in (service.txt2img(), service.img2img(png())):
        assert (later.status_code, later.json()["code"]) == (503, "device_lost")
    assert service.losses == [None]


def errors_counted(service: Service, code: str) -> float:
    for line in service.client.get("/metrics").text.splitlines():
        if line.startswith(f'turbo_errors_total{{code="{code}"}}'):
            return float(line.rpartition(" ")[2])
    return 0


# Memory.


def test_when_memory_is_short_once_the_picture_is_made_all_the_same(service: Service, npu: Npu) -> None:
    before = service.txt2img().content
    npu.allocations_to_fail = 1
    again = service.txt2img()
    assert (again.status_code, again.content) == (200, before)
    assert npu.calls["torch.npu.empty_cache"] == 1
    order = list(npu.calls)
    assert order.index("torch.npu.synchronize") < order.index("torch.npu.empty_cache"), (
        "without synchronize first, empty_cache waits while it holds the GIL"
    )


def test_when_memory_is_short_twice_it_is_503_and_the_next_request_is_served(service: Service, npu: Npu) -> None:
    npu.allocations_to_fail = 2
    refused = service.txt2img()
    assert (refused.status_code, refused.json()["code"]) == (503, "out_of_memory")
    assert int(refused.headers["retry-after"]) >= 1
    assert service.health() == (200, 200, "ready")
    assert service.txt2img().status_code == 200
    assert npu.calls["torch.npu.empty_cache"] == 1
    assert service.losses == []


def test_a_picture_too_large_for_the_device_is_refused_and_a_smaller_one_is_made(service: Service, npu: Npu) -> None:
    assert service.txt2img().status_code == 200
    npu.capacity_bytes = npu.allocated_bytes + (8 << 20)
    refused = service.txt2img(width=512, height=512)
    assert (refused.status_code, refused.json()["code"]) == (503, "out_of_memory")
    assert service.txt2img().status_code == 200
    assert service.img2img(png((64, 64))).status_code == 200


def test_of_several_pictures_in_one_request_none_is_lost_when_memory_is_short_once(service: Service, npu: Npu) -> None:
    def envelope() -> list[str]:
        body = {"prompt": "a cat", "seed": 5, "num_images": 3, "width": 64, "height": 64}
        response = service.client.post("/txt2img", json=body, headers={"Accept": "application/json"})
        assert response.status_code == 200, response.text
        return [image["b64"] for image in response.json()["images"]]

    before = envelope()
    assert len(set(before)) == 3
    npu.allocations_to_fail = 1
    assert envelope() == before


# Errors.


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("NPU function error: AclSynchronizeStream, error code is 507015"),
        RuntimeError("HBM MULTI BIT ECC ERROR, time is 1"),
        torch.OutOfMemoryError(INNER_ERROR.format(name="Conv2D") + " EL0004: Failed to allocate memory"),
        RuntimeError("NPU function error: something that nobody has seen before, error code is 999999"),
    ],
    ids=["aicore", "ecc", "out of memory in the queue", "unknown"],
)
@pytest.mark.parametrize("mode", ["txt2img", "img2img"])
def test_any_other_error_loses_the_device(service: Service, npu: Npu, error: Exception, mode: str) -> None:
    npu.error = error
    response = service.txt2img() if mode == "txt2img" else service.img2img(png((64, 64)))
    assert_lost(service, response)


REFUSED = (
    "conv:ConvolutionKernelNpuOpApi.cpp:310 NPU function error: call aclnnConvolution failed, error code is {code}\n"
    "[ERROR] 2026-06-23-03:49:48 (PID:1, Device:0, RankID:0) ERR00100 PTA call acl api failed.\n{said}"
)


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (REFUSED.format(code=561002, said="EZ9999: do tiling failed"), "operator_refused", "(aclnnConvolution)"),
        (
            REFUSED.format(code=161002, said="EZ1001: not supported"),
            "operator_refused",
            "does not take these arguments",
        ),
        (
            "Given groups=1, weight of size [4, 4, 3, 3], expected input to have 4",
            "inference_failed",
            "on this request",
        ),
    ],
    ids=["tiling", "parameter", "torch's own"],
)
def test_what_is_refused_on_the_host_is_this_request_s_error_and_the_next_is_served(
    service: Service, npu: Npu, text: str, code: str, said: str
) -> None:
    before = service.txt2img().content
    for ask in (partial(service.txt2img, seed=2), partial(service.img2img, png((64, 64)))):
        npu.error = RuntimeError(text)
        refused = ask()
        assert (refused.status_code, refused.json()["code"]) == (500, code)
        assert said in refused.json()["detail"]
        assert refused.headers.get("x-should-retry") == ("false" if code == "operator_refused" else None)
    assert service.health() == (200, 200, "ready")
    assert service.txt2img().content == before
    assert service.losses == []


def test_what_is_refused_on_the_host_by_a_device_that_does_not_compute_any_more_loses_it(
    service: Service, npu: Npu
) -> None:
    assert service.txt2img().status_code == 200
    npu.error = RuntimeError(REFUSED.format(code=561002, said=""))
    npu.queue = "dead"
    assert_lost(service, service.txt2img())


def test_a_device_that_refuses_even_its_check_is_lost(service: Service, npu: Npu) -> None:
    npu.refusal = RuntimeError(REFUSED.format(code=561103, said="no kernel"))
    assert_lost(service, service.txt2img())


def test_the_same_refusal_from_the_task_queue_loses_the_device(service: Service, npu: Npu) -> None:
    """With TASK_QUEUE_ENABLE=2 the host's checks run in the queue, and a failed check ends the queue."""
    npu.error = RuntimeError(INNER_ERROR.format(name="aclnnConvolution") + " error code is 561002")
    npu.queue = "dying"
    assert_lost(service, service.txt2img())


def test_everybody_who_waits_behind_the_error_gets_503_and_nobody_a_picture(service: Service, npu: Npu) -> None:
    npu.hang = threading.Event()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(service.txt2img, seed=seed) for seed in range(8)]
        wait_for_queue(service.client, waiting=7)
        npu.error = RuntimeError("error code is 507018")
        npu.hang.set()
        npu.hang = None
        assert {future.result().status_code for future in asked} == {503}
    assert_lost(service, asked[0].result())


# A queue that dies silently.


def test_a_queue_that_dies_with_an_error_is_never_believed_again(service: Service, npu: Npu) -> None:
    npu.queue = "dying"
    assert_lost(service, service.txt2img())
    npu.calls.clear()
    assert service.txt2img().status_code == 503
    assert npu.calls["aten::convolution"] == 0


def test_a_queue_that_dies_without_a_word_is_found_before_its_stale_picture_is_sent(service: Service, npu: Npu) -> None:
    assert service.txt2img(seed=1).status_code == 200
    npu.queue = "dead"
    assert_lost(service, service.txt2img(seed=2))


def test_an_error_that_a_library_has_swallowed_does_not_hide_the_death(service: Service, npu: Npu) -> None:
    """The call that hits the error returns a picture; only the check after the call detects the fault."""
    assert service.txt2img().status_code == 200
    npu.queue = "dying"
    with pytest.raises(RuntimeError, match="Inner error"):
        torch.ones(3, device="npu").add(1)
    assert vars(npu)["queue"] == "dead"
    assert_lost(service, service.img2img(png((64, 64))))


def test_an_error_of_the_request_s_own_is_followed_by_a_check(service: Service, npu: Npu) -> None:
    npu.picture_value = float("nan")
    assert service.txt2img().json()["code"] == "dead_picture"
    npu.queue = "dead"
    assert_lost(service, service.txt2img())


def test_an_idle_device_that_dies_fails_the_probes_without_a_request(npu: Npu) -> None:
    with service_on_npu(idle_check_s=0.1) as service:
        time.sleep(0.5)
        assert service.health() == (200, 200, "ready")
        npu.queue = "dead"
        deadline = time.monotonic() + 10
        while service.health()[0] == 200:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert_lost(service, service.txt2img())


# Invalid pictures.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0], ids=["nan", "inf", "constant"])
@pytest.mark.parametrize("mode", ["txt2img", "img2img"])
def test_a_picture_that_is_none_is_500_once_and_not_to_be_tried_again(
    service: Service, npu: Npu, value: float, mode: str
) -> None:
    counted = errors_counted(service, "dead_picture")
    npu.picture_value = value
    refused = service.txt2img() if mode == "txt2img" else service.img2img(png((64, 64)))
    assert (refused.status_code, refused.json()["code"]) == (500, "dead_picture")
    assert refused.headers["x-should-retry"] == "false"
    assert errors_counted(service, "dead_picture") == counted + 1
    npu.picture_value = None
    assert service.txt2img().status_code == 200
    assert service.health() == (200, 200, "ready")


# The process.


Failing = Callable[..., tuple[ServerProcess, Service]]


@pytest.fixture
def failing(start_server: StartServer, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> Iterator[Failing]:
    """Start servers in their own processes, on a simulated NPU that fails at SIGUSR1 as `fault` says."""
    with contextlib.ExitStack() as clients:

        def start(fault: str, **settings: object) -> tuple[ServerProcess, Service]:
            monkeypatch.setenv("NPU_FAULT", fault)
            small = {"model": tiny_folder, "dtype": "fp32", "warm_up_sizes": "64x64", "max_batch": 1}
            server = start_server(prelude=CHILD, on_npu=True, device="npu", drain_s=10, **small, **settings)
            return server, clients.enter_context(asking(server.wait_until_started()))

        yield start


@pytest.mark.parametrize("fault", ["error", "dying", "dead"])
def test_the_process_ends_non_zero_within_its_drain_time_when_the_device_is_lost(failing: Failing, fault: str) -> None:
    server, service = failing(fault)
    assert service.txt2img().status_code == 200
    os.kill(server.process.pid, signal.SIGUSR1)
    time.sleep(0.1)
    told = service.txt2img()
    assert (told.status_code, told.json()["code"]) == (503, "device_lost")
    assert server.wait(10) == DEVICE_LOST
    assert "the device is lost" in server.log


def test_an_idle_process_ends_itself_when_its_device_dies(failing: Failing) -> None:
    server, _ = failing("dead", idle_check_s=0.2)
    os.kill(server.process.pid, signal.SIGUSR1)
    assert server.wait(10) == DEVICE_LOST


def test_a_call_that_never_returns_ends_the_process_and_everybody_who_waits_is_told(failing: Failing) -> None:
    server, service = failing("hang", hang_limit_s=3)
    os.kill(server.process.pid, signal.SIGUSR1)
    time.sleep(0.1)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(service.txt2img, seed=seed) for seed in range(4)]
        told = [future.result() for future in asked]
    assert {(response.status_code, response.json()["code"]) for response in told} == {(503, "device_lost")}
    within = re.search(r"did not return within [\d.]+ s", told[0].json()["detail"])  # 3 s, or more on a busy machine
    assert within
    assert server.wait(10) == DEVICE_LOST
    assert within[0] in server.log


@pytest.mark.parametrize("fault", ["error", pytest.param("hang", marks=[pytest.mark.long, pytest.mark.only_long])])
def test_a_device_that_fails_while_the_service_starts_ends_it_to_be_replaced(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv("NPU_FAULT", fault)
    long = {"model": "demo", "dtype": "fp32", "warm_up_sizes": ",".join(["256x256"] * 20), "max_batch": 1}
    server = start_server(prelude=CHILD, on_npu=True, device="npu", hang_limit_s=4, **long)
    server.wait_for_log("loaded demo")
    os.kill(server.process.pid, signal.SIGUSR1)
    assert server.wait(30) == DEVICE_LOST
    assert "the device is lost" in server.log


def test_an_idle_check_that_never_returns_ends_the_process(failing: Failing) -> None:
    server, _ = failing("hang", hang_limit_s=3, idle_check_s=0.2)
    os.kill(server.process.pid, signal.SIGUSR1)
    assert server.wait(10) == DEVICE_LOST


@pytest.mark.parametrize("signals", [pytest.param(1, marks=[pytest.mark.long, pytest.mark.only_long]), 2])
def test_signals_after_the_loss_do_not_hide_it_and_the_second_ends_the_process_at_once(
    failing: Failing, signals: int
) -> None:
    server, service = failing("dead")
    address = service.client.base_url
    with socket.create_connection((address.host, address.port or 0)) as slow:
        slow.sendall(
            b"POST /txt2img HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
        os.kill(server.process.pid, signal.SIGUSR1)
        time.sleep(0.1)
        service.txt2img()
        for _ in range(signals):
            server.terminate()
            time.sleep(0.3)
        assert server.wait(20) == DEVICE_LOST
    assert ("stopping at once" in server.log) is (signals == 2)
