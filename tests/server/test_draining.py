"""The end: at SIGTERM whatever was accepted is served, whoever comes later is told, and nobody is cut off."""

import io
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.cli.test_commands import IMG2IMG, TXT2IMG, ask, ask_in_background, errors
from tests.conftest import ServerProcess, StartServer, png, wait_for_queue
from tests.support.crowd import CLIENTS, Wish, alike, ask_all, pictures, wishes

DRAIN_S = 20
GAVE_UP = 1


# While it starts.


def test_sigterm_during_start_ends_the_process_at_once(start_server: StartServer) -> None:
    server = start_server(model="fake:20")
    server.wait_for_log("Waiting for application startup")
    time.sleep(0.2)
    started = time.monotonic()
    server.terminate()
    assert server.wait() == 128 + 15
    assert time.monotonic() - started < 5


@pytest.mark.skipif(os.geteuid() != 0, reason="a PID namespace of its own takes root")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_python_still_imports_ends_the_process_at_once(number: signal.Signals) -> None:
    """As PID 1, in a namespace of its own as in a container, where a signal has no default action."""
    process = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-X", "importtime", "-m", "app"],
        env={**os.environ, "TURBO_MODEL": "fake:20"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:  # the imports as they happen
        if line.rstrip().endswith(" fastapi"):
            break
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), number)
    process.stderr.close()
    assert process.wait(timeout=10) == 128 + number


@pytest.mark.long
def test_sigterm_at_any_moment_of_the_start_ends_the_process_soon_and_in_order(
    start_server: StartServer, rounds: Callable[[int, int], int]
) -> None:
    chance = random.Random(5)
    for _ in range(rounds(3, 50)):
        server = start_server(model="fake:0.2")
        time.sleep(chance.uniform(0, 2))
        server.terminate()
        code = server.wait(10)
        # Python itself, before it has read a line of ours, ends by the signal; once the port is open it is a drain.
        assert code in ((0, 128 + 15) if "Uvicorn running" in server.log else (-signal.SIGTERM, 128 + 15))
        assert "Traceback" not in server.log


# By itself.


def test_sigterm_ends_an_idle_service_with_0(start_server: StartServer) -> None:
    server = start_server(model="fake")
    server.wait_until_started()
    server.terminate()
    assert server.wait() == 0


def test_after_sigterm_accepted_requests_are_answered_and_new_ones_told_to_go_elsewhere(
    start_server: StartServer,
) -> None:
    server = start_server(model="fake:3")
    url = server.wait_until_started()
    running = ask_in_background(url)
    waiting = ThreadPoolExecutor(max_workers=1).submit(ask, url, seed=4)
    with httpx.Client(base_url=url) as client:
        wait_for_queue(client, waiting=1)
    server.terminate()
    server.wait_for_log("draining, 2 requests in flight")
    ready = httpx.get(f"{url}/healthz/ready")
    assert (ready.status_code, ready.json()["health"]["status"]) == (503, "draining")
    assert httpx.get(f"{url}/healthz/live").status_code == 200
    for refused in (ask(url), httpx.post(f"{url}/img2img", data=IMG2IMG, files={"image": png()})):
        assert (refused.status_code, refused.json()["code"]) == (503, "draining")
        assert refused.headers["connection"] == "close"
        assert int(refused.headers["retry-after"]) >= 1
    assert [running.result().status_code, waiting.result().status_code] == [200, 200]
    assert running.result().headers["connection"] == "close"  # or its next request would meet a closed port
    assert server.wait() == 0


def test_when_the_drain_time_is_over_who_is_left_is_told_and_the_service_ends_with_1(
    start_server: StartServer,
) -> None:
    server = start_server(model="fake:3", drain_s=0.5)
    url = server.wait_until_started()
    running = ask_in_background(url)
    started = time.monotonic()
    server.terminate()
    assert server.wait() == 1
    assert time.monotonic() - started < 2.5
    assert (running.result().status_code, running.result().json()["code"]) == (503, "draining")
    assert "drain time is over: giving up on 1 requests" in server.log


def test_a_call_that_nobody_waits_for_any_more_does_not_hold_up_the_end(start_server: StartServer) -> None:
    server = start_server(model="fake:3")
    url = server.wait_until_started()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/txt2img", json=TXT2IMG, timeout=0.3)
    server.wait_for_log('"status": 499')
    started = time.monotonic()
    server.terminate()
    assert server.wait() == 0
    assert time.monotonic() - started < 2


def test_a_body_that_never_arrives_does_not_hold_up_the_end(start_server: StartServer) -> None:
    server = start_server(model="fake")
    address = httpx.URL(server.wait_until_started())
    with socket.create_connection((address.host, address.port or 0), timeout=20) as connection:
        connection.sendall(
            b"POST /txt2img HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        time.sleep(0.3)
        started = time.monotonic()
        server.terminate()
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert server.wait() == 0
    assert time.monotonic() - started < 15
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b'"code":"draining"' in answer
    assert errors(server.log) == ["Cancel 1 running task(s), timeout graceful shutdown exceeded"]


def test_a_second_sigterm_ends_the_service_at_once(start_server: StartServer) -> None:
    server = start_server(model="fake:3")
    url = server.wait_until_started()
    ask_in_background(url)
    server.terminate()
    server.wait_for_log("draining")
    started = time.monotonic()
    server.terminate()
    assert server.wait() == 128 + 15
    assert time.monotonic() - started < 2


# With a crowd at work.


@dataclass
class Crowd:
    """Clients of all kinds that go on until the service is gone, and what they saw."""

    url: httpx.URL
    server: ServerProcess
    number: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    gone: threading.Event = field(default_factory=threading.Event)
    refused_at: list[float] = field(default_factory=list)
    served: int = 0
    mutex: threading.Lock = field(default_factory=threading.Lock)

    def ask(self) -> None:
        """Ask for one picture after the other, over a connection that is kept while the service keeps it."""
        with httpx.Client(base_url=self.url, timeout=60) as client:
            while not self.gone.is_set():
                (wish,) = wishes(next(self.number), 1)
                try:
                    answer = wish.send(client)
                except httpx.TransportError:
                    self.note_end()
                    continue
                self.note(wish, answer)

    def upload(self) -> None:
        """Send a picture in pieces, so that it arrives later than it was begun, again and again."""
        wish = next(wish for wish in wishes(7_000_000, 3) if wish.color)
        sent = wish.request(self.url)
        body = sent.read()
        pieces = [body[i : i + 200] for i in range(0, len(body), 200)]

        def slowly() -> Iterator[bytes]:
            for piece in pieces:
                time.sleep(0.02)
                yield piece

        with httpx.Client(timeout=60) as client:
            while not self.gone.is_set():
                headers = {"Content-Type": sent.headers["content-type"], "Content-Length": str(len(body))}
                try:
                    answer = client.post(sent.url, content=slowly(), headers=headers)
                except httpx.TransportError:
                    self.note_end()
                    continue
                self.note(wish, answer)

    def probe(self) -> None:
        """Ask whether it is ready, as a load balancer does: once somebody was refused, it never is again."""
        while not self.gone.is_set():
            refused = len(self.refused_at) > 0
            try:
                ready = httpx.get(self.url.join("/healthz/ready")).status_code == 200
            except httpx.TransportError:
                self.note_end()
            else:
                assert not (refused and ready), "a request was refused, and then the service said that it was ready"

    def note(self, wish: Wish, answer: httpx.Response) -> None:
        """Check an answer: the right pictures, or that the service is going."""
        if answer.status_code == 200:
            assert alike(pictures(answer), wish.painted()), f"{wish} got another's pictures"
            with self.mutex:
                self.served += 1
            return
        assert (answer.status_code, answer.json()["code"]) == (503, "draining")
        assert answer.headers["connection"] == "close"
        assert int(answer.headers["retry-after"]) >= 1
        self.refused_at.append(time.monotonic())
        time.sleep(0.02)

    def note_end(self) -> None:
        """Check that the service may be gone: it says so when nothing is left to do, before it closes its port."""
        assert "Shutting down" in self.server.log, "refused or cut off by a service that was not done"
        self.gone.set()


def served(log: list[dict[str, object]]) -> int:
    """How many requests for pictures a part of the log says were served."""
    return sum(entry.get("path") in ("/txt2img", "/img2img", "/inpaint") and entry["status"] == 200 for entry in log)


@pytest.mark.long
def test_at_any_moment_everything_accepted_is_served_and_nobody_is_cut_off_before(
    start_server: StartServer, rounds: Callable[[int, int], int]
) -> None:
    chance = random.Random(3)
    for _ in range(rounds(3, 50)):
        server = start_server(model="fake:0.02", max_queue=100, drain_s=DRAIN_S)
        crowd = Crowd(httpx.URL(server.wait_until_started()), server)
        idle = [socket.create_connection((crowd.url.host, crowd.url.port or 0), timeout=20) for _ in range(8)]
        for connection in idle[4:]:
            connection.sendall(b"POST /txt2img HTT")
        with ThreadPoolExecutor(CLIENTS + 5) as threads:
            kinds = [crowd.ask] * CLIENTS + [crowd.upload] * 4 + [crowd.probe]
            at_work = [threads.submit(kind) for kind in kinds]
            while crowd.served < CLIENTS and not any(one.done() for one in at_work):
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.5))
            server.terminate()
            code = server.wait(DRAIN_S)
            crowd.gone.set()
        for one in at_work:
            one.result()
        assert code == 0
        assert errors(server.log) == []
        log = [json.loads(line) for line in server.log.splitlines()]
        closed = [entry["event"] for entry in log].index("Shutting down")
        assert (served(log[:closed]), served(log[closed:])) == (crowd.served, 0)
        for connection in idle:
            assert connection.recv(1) == b""
            connection.close()


def test_when_the_drain_time_is_over_everybody_of_a_crowd_is_told(start_server: StartServer) -> None:
    server = start_server(model="fake:0.5", drain_s=0.5)
    url = server.wait_until_started()
    asked = wishes(1, CLIENTS)
    with ThreadPoolExecutor(1) as background, httpx.Client(base_url=url) as client:
        crowd = background.submit(ask_all, url, asked)
        wait_for_queue(client, waiting=CLIENTS // 2)
        started = time.monotonic()
        server.terminate()
        answers = crowd.result()
    assert server.wait() == GAVE_UP
    assert time.monotonic() - started < 5
    for wish, answer in zip(asked, answers, strict=True):
        if answer.status_code != 200:
            assert (answer.status_code, answer.json()["code"]) == (503, "draining")
        else:
            assert alike(pictures(answer), wish.painted())
    assert sum(answer.status_code == 503 for answer in answers) >= CLIENTS // 2


def test_a_client_that_reads_slowly_gets_all_of_its_answer_and_until_then_the_port_stays_open(
    start_server: StartServer,
) -> None:
    """Four pictures of noise are more than the buffers between us take."""
    server = start_server(
        prelude="from app.server import draining; draining.LAST_BYTES_S = 1", model="fake", drain_s=DRAIN_S
    )
    url = httpx.URL(server.wait_until_started())
    file = io.BytesIO()
    noise = np.random.default_rng(4).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG", compress_level=1)
    fields = {"prompt": "noise", "num_images": 4, "width": 1024, "height": 1024}
    sent = httpx.Request("POST", url.join("/img2img"), data=fields, files={"image": file.getvalue()})
    head = b"".join(b"%b: %b\r\n" % field for field in sent.headers.raw)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        slow.settimeout(30)
        slow.connect((url.host, url.port or 0))
        slow.sendall(b"POST /img2img HTTP/1.1\r\n%b\r\n%b" % (head, sent.read()))
        answer = slow.recv(4096)
        server.terminate()
        time.sleep(2.5)
        assert httpx.get(url.join("/healthz/ready")).json()["health"]["status"] == "draining"
        answer += b"".join(iter(lambda: slow.recv(1 << 20), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert len({image["b64"] for image in json.loads(body)["images"]}) == 4
    assert server.wait() == 0
