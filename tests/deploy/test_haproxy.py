"""The shipped HAProxy configuration with three real processes: when one rejects a request, another serves it."""

import csv
import io
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from app.errors import RequestTimeoutError
from app.main import create_app
from app.settings import Settings
from benchmarks.support.ports import free_port
from tests.conftest import ServerProcess, program, serving, wait_until
from tests.support.crowd import Wish, alike, ask_all, pictures, wishes

CONFIG = Path(__file__).parents[2] / "deploy/haproxy/haproxy.cfg"

CHILD = "from tests.support import child"

PLACES = 2
"""Requests that each process accepts: one on the device, and one in the queue."""


class Haproxy:
    """The shipped configuration, with other ports and sockets."""

    def __init__(self, folder: Path, ports: list[int], *, hasty: bool = False) -> None:
        """Start HAProxy in front of processes on these ports. `hasty` shortens the probes' times."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._socket = folder / "admin.sock"
        text = CONFIG.read_text(encoding="utf-8")
        others = {":8080": f":{port}", ":8404": f":{free_port()}", "/run/haproxy/admin.sock": str(self._socket)}
        others |= {f"127.0.0.1:{8000 + number}": f"127.0.0.1:{port}" for number, port in enumerate(ports)}
        others |= {"abns@": f"abns@{port}-"}
        if hasty:
            others |= {"inter 1s": "inter 100ms", "timeout check 2s": "timeout check 500ms", "time 60s": "time 500ms"}
        for one, other in others.items():
            assert one in text, one
            text = text.replace(one, other)
        (folder / "haproxy.cfg").write_text(text, encoding="utf-8")
        self.process = subprocess.Popen(
            [program("haproxy"), "-db", "-f", folder / "haproxy.cfg"], stderr=subprocess.DEVNULL
        )
        wait_until(lambda: self._socket.exists() and is_open(port))

    def state(self, number: int, *, backend: str = "processes") -> str:
        """HAProxy's state of a process, UP or DOWN."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self._socket))
            connection.sendall(b"show stat\n")
            text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        rows = csv.DictReader(io.StringIO(text.removeprefix("# ")))
        (state,) = (row["status"] for row in rows if (row["pxname"], row["svname"]) == (backend, str(number)))
        return state

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def is_open(port: int) -> bool:
    with socket.socket() as knock:
        return knock.connect_ex(("127.0.0.1", port)) == 0


def retry_after(answer: httpx.Response) -> int:
    return int(answer.headers["retry-after"])


class Hall:
    """Three processes whose calls tests can hold, and HAProxy in front of them."""

    def __init__(self, servers: list[ServerProcess], urls: list[str], proxy: Haproxy) -> None:
        self.servers = servers
        self.urls = urls
        self.proxy = proxy
        self._threads = ThreadPoolExecutor(32)
        self._client = httpx.Client()

    def ask(self, url: str | None = None, **fields: object) -> "Future[httpx.Response]":
        """Send a request from another thread, through HAProxy unless `url` names a process."""
        json = {"prompt": "a fox", "seed": 1, "width": 64, "height": 64, **fields}
        return self._threads.submit(self._client.post, f"{url or self.proxy.url}/txt2img", json=json, timeout=60)

    def ask_each(self) -> list[httpx.Response]:
        """The answer of each process."""
        return [self.ask(url).result() for url in self.urls]

    @contextmanager
    def held(self, *numbers: int) -> Iterator[None]:
        """Hold the calls of these processes until the context ends."""
        for number in numbers:
            self._turn(number)
        try:
            yield
        finally:
            for number in numbers:
                self._turn(number)
            for number in numbers:
                wait_until(lambda number=number: self.in_flight(number) == 0)  # type: ignore[misc] # the default binds the loop variable

    @contextmanager
    def full(self, *numbers: int) -> Iterator[None]:
        """Fill these processes with requests that bypass HAProxy."""
        with self.held(*numbers):
            others = [self.ask(self.urls[number]) for number in numbers for _ in range(PLACES)]
            for number in numbers:
                wait_until(lambda number=number: self.in_flight(number) == PLACES)  # type: ignore[misc] # as above
            yield
        assert {other.result().status_code for other in others} == {200}

    def in_flight(self, number: int) -> int:
        """The number of requests that a process runs or queues."""
        queue = self._client.get(f"{self.urls[number]}/healthz/ready").json()["queue"]
        return int(queue["waiting"]) + bool(queue["running_s"])

    def refused(self) -> float:
        """The number of requests that the processes rejected because their queues were full."""
        return sum(
            float(value)
            for url in self.urls
            for value in re.findall(
                r'turbo_errors_total\{code="queue_full"\} (\S+)', self._client.get(f"{url}/metrics").text
            )
        )

    def close(self) -> None:
        self._client.close()
        self._threads.shutdown()

    def _turn(self, number: int) -> None:
        os.kill(self.servers[number].process.pid, signal.SIGUSR2)


@pytest.fixture(scope="module")
def hall(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hall]:
    folder = tmp_path_factory.mktemp("hall")
    with ExitStack() as stack:
        servers = []
        for number in range(3):
            servers.append(
                ServerProcess(
                    folder / f"{number}.log",
                    prelude=CHILD,
                    model="fake",
                    batching="off",
                    max_queue=PLACES - 1,
                    trusted_proxies="127.0.0.1",
                )
            )
            stack.callback(servers[-1].kill)
        urls = [server.wait_until_started() for server in servers]
        proxy = stack.enter_context(haproxy([httpx.URL(url).port or 0 for url in urls]))
        hall = Hall(servers, urls, proxy)
        yield hall
        hall.close()


@contextmanager
def haproxy(ports: list[int], *, hasty: bool = False) -> Iterator[Haproxy]:
    with tempfile.TemporaryDirectory() as folder:  # pytest's paths are too long for a socket
        proxy = Haproxy(Path(folder), ports, hasty=hasty)
        try:
            yield proxy
        finally:
            proxy.stop()


# The configuration file.


def test_haproxy_has_nothing_to_say_against_the_configuration() -> None:
    done = subprocess.run([program("haproxy"), "-c", "-f", CONFIG], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "Configuration file is valid\n")


def test_each_process_has_its_line_its_listener_and_the_port_of_its_unit() -> None:
    text = CONFIG.read_text(encoding="utf-8")
    listeners = re.findall(
        r"listen process-(\d+) from process\n    bind (\S+)\n(?:    http-.*\n)+    server service 127\.0\.0\.1:(\d+)",
        text,
    )
    assert re.findall(r"^    server (\d+) (abns@\S+)$", text, re.MULTILINE) == [(n, name) for n, name, _ in listeners]
    assert [(int(number), int(port)) for number, _, port in listeners] == [(0, 8000), (1, 8001), (2, 8002)]
    unit = (CONFIG.parents[1] / "systemd/sdxl-turbo-server@.service").read_text(encoding="utf-8")
    assert "--port $$((8000 + %i))" in unit


def test_its_times_leave_the_service_its_own() -> None:
    text, settings = CONFIG.read_text(encoding="utf-8"), Settings()
    times = {
        name: float(value)
        for name, value in re.findall(r"(?:timeout |http-request wait-for-)(\S+) (?:time )?(\d+)s", text)
    }
    assert times["http-request"] == settings.header_timeout_s
    assert times["body"] == settings.body_timeout_s
    assert min(times["server"], times["client"]) > settings.deadline_s


# Three processes behind HAProxy.


def test_what_full_processes_refuse_is_served_by_one_that_is_not(hall: Hall) -> None:
    before = hall.refused()
    with hall.full(0, 1):
        answers = [hall.ask(seed=seed).result() for seed in range(6)]
        assert [answer.status_code for answer in answers] == [200] * 6, answers[0].text
        for seed, answer in enumerate(answers):
            assert alike(pictures(answer), Wish(prompt="a fox", seed=seed).painted())
    assert hall.refused() > before, "no process rejected a request, so the test shows nothing"


def test_an_upload_goes_on_to_the_next_too(hall: Hall) -> None:
    before = hall.refused()
    picture = upload(550)
    with hall.full(0, 1):
        for _ in range(3):
            answer = httpx.post(f"{hall.proxy.url}/img2img", files={"image": picture}, data={"prompt": "a"}, timeout=60)
            assert answer.status_code == 200, answer.text
    assert hall.refused() > before, "no process rejected a request, so the test shows nothing"


def test_an_upload_that_is_larger_than_a_buffer_is_served(hall: Hall) -> None:
    picture = upload(1500)
    (buffer,) = re.findall(r"tune\.bufsize (\d+)", CONFIG.read_text(encoding="utf-8"))
    assert len(picture) > 2 * int(buffer)
    asked = {"prompt": "a", "seed": "1", "strength": "1", "width": "64", "height": "64"}
    direct, passed = (
        httpx.post(f"{url}/img2img", files={"image": picture}, data=asked, timeout=60)
        for url in (hall.urls[0], hall.proxy.url)
    )
    assert (passed.status_code, passed.content) == (200, direct.content)


def test_when_all_are_full_the_client_gets_the_answer_of_one_as_it_is(hall: Hall) -> None:
    with hall.full(0, 1, 2):
        before, answer, after = hall.ask_each(), hall.ask().result(), hall.ask_each()
    direct = before[0]
    assert (answer.status_code, answer.reason_phrase) == (429, "Too Many Requests")
    least, told, most = min(map(retry_after, after)), retry_after(answer), max(map(retry_after, before))
    assert least <= told <= most  # each process measures its own, and it becomes less while its call runs
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() | {"request_id": ""} == direct.json() | {"request_id": ""}
    assert answer.headers["x-request-id"] == answer.json()["request_id"]


def test_requests_are_spread_evenly_and_those_of_clients_that_leave_lose_their_places(hall: Hall) -> None:
    message = b'{"prompt": "a fox"}'
    head = b"POST /txt2img HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with hall.held(0, 1, 2):
        clients = []
        for number in range(1, 3 * PLACES + 1):
            clients.append(socket.create_connection(("127.0.0.1", httpx.URL(hall.proxy.url).port or 0)))
            clients[-1].sendall(head % len(message) + message)
            wait_until(lambda number=number: sum(map(hall.in_flight, range(3))) == number)  # type: ignore[misc]
        assert [hall.in_flight(number) for number in range(3)] == [PLACES] * 3
        for client in clients:
            client.close()
        wait_until(lambda: [hall.in_flight(number) for number in range(3)] == [1] * 3)  # a running call continues


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.9"])
def test_the_service_knows_who_asks_and_not_what_they_say_of_themselves(hall: Hall, address: str) -> None:
    transport, name = httpx.HTTPTransport(local_address=address), f"a-request-from-{address}"
    with httpx.Client(transport=transport, base_url=hall.proxy.url) as client:
        headers = {"X-Forwarded-For": "192.0.2.6", "X-Request-ID": name}
        answer = client.post("/txt2img", json={"prompt": "a fox"}, headers=headers)
    assert answer.headers["x-request-id"] == name
    logged = rf'"{name}".*"client": "([^"]+)"'
    wait_until(lambda: any(re.search(logged, server.log) for server in hall.servers))
    assert [found[1] for server in hall.servers if (found := re.search(logged, server.log))] == [address]


def test_the_metrics_of_one_process_are_not_served_as_those_of_all(hall: Hall) -> None:
    for path in ("/metrics", "/%6detrics"):
        assert httpx.get(f"{hall.proxy.url}{path}").status_code == 404
    assert httpx.get(f"{hall.proxy.url}/healthz/ready").status_code == 200


def test_a_client_that_asks_too_often_is_not_sent_from_one_process_to_the_next() -> None:
    with ExitStack() as stack:
        apps = [create_app(Settings(model="fake", rate_limit="1/hour", batching="off")) for _ in range(3)]
        urls = [stack.enter_context(serving(app)) for app in apps]
        proxy = stack.enter_context(haproxy([httpx.URL(url).port or 0 for url in urls]))
        asked = {"prompt": "a fox", "width": 64, "height": 64}
        answers = [httpx.post(f"{proxy.url}/txt2img", json=asked) for _ in range(9)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(answers) - len(refused) == 3
        assert {answer.json()["code"] for answer in refused} == {"rate_limited"}
        counted = [app.state.context.observability.metrics.errors.labels("rate_limited")._value.get() for app in apps]  # noqa: SLF001
        assert sum(counted) == len(refused)


def test_a_body_that_does_not_arrive_is_refused_in_the_service_s_words(hall: Hall) -> None:
    with haproxy([httpx.URL(url).port or 0 for url in hall.urls], hasty=True) as proxy:
        head = b"POST /txt2img HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
        with socket.create_connection(("127.0.0.1", httpx.URL(proxy.url).port or 0)) as client:
            client.sendall(head)
            answer, _, body = client.makefile("rb").read().partition(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"content-type: application/problem+json" in answer
    assert json.loads(body)["code"] == RequestTimeoutError.code


def test_the_requests_of_a_process_that_is_stopped_go_on_to_another(hall: Hall) -> None:
    with haproxy([httpx.URL(url).port or 0 for url in hall.urls], hasty=True) as proxy, hall.held(0):
        asked = [hall.ask(proxy.url, seed=seed) for seed in range(6)]
        wait_until(lambda: hall.in_flight(0) > 0)
        hall.servers[0].process.send_signal(signal.SIGSTOP)
        try:
            assert [answer.result().status_code for answer in asked] == [200] * 6
            wait_until(lambda: proxy.state(0) == "DOWN")
        finally:
            hall.servers[0].process.send_signal(signal.SIGCONT)


def upload(side: int) -> bytes:
    """A PNG of noise, which does not compress."""
    pixels = np.random.default_rng(1).integers(0, 255, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


# Processes that stop and start.


def test_processes_are_killed_stopped_and_started_under_load_and_every_client_gets_its_own_picture(
    tmp_path: Path,
) -> None:
    with ExitStack() as stack:

        def start(number: int, port: int = 0) -> ServerProcess:
            log = tmp_path / f"{number}-{port}.log"
            server = ServerProcess(log, model="fake:0.03", batching="off", port=port)
            stack.callback(server.kill)
            return server

        servers = [start(number) for number in range(3)]
        urls = [server.wait_until_started() for server in servers]
        ports = [httpx.URL(url).port or 0 for url in urls]
        proxy = stack.enter_context(haproxy(ports))
        background = stack.enter_context(ThreadPoolExecutor(1))

        def under_load(first: int, act: Callable[[], None]) -> int:
            """Send requests from a crowd, and call `act` when a third have responses. Return how many were cut off.

            HAProxy cannot send a request again when its response has begun. Then the client does.
            """
            asked, some = wishes(first, 120), threading.Event()
            answers: list[httpx.Response] = []
            cut_off: list[Wish] = []

            def send(wish: Wish, client: httpx.Client) -> httpx.Response:
                try:
                    answer = wish.send(client)
                except httpx.RemoteProtocolError:
                    cut_off.append(wish)
                    answer = wish.send(client)
                answers.append(answer)
                if len(answers) == len(asked) // 3:
                    some.set()
                return answer

            crowd = background.submit(ask_all, proxy.url, asked, send=send)
            assert some.wait(60)
            act()
            for wish, answer in zip(asked, crowd.result(), strict=True):
                assert answer.status_code == 200, answer.text
                assert alike(pictures(answer), wish.painted()), f"{wish} got another request's pictures"
            return len(cut_off)

        assert under_load(1, servers[1].process.kill) <= 1, "at most the response that was being written"
        wait_until(lambda: proxy.state(1) == "DOWN")
        servers[1] = start(1, ports[1])
        wait_until(lambda: proxy.state(1) == "UP")
        assert under_load(1001, servers[2].terminate) == 0
        assert servers[2].wait() == 0
        wait_until(lambda: proxy.state(2) == "DOWN")
        for server in servers[:2]:
            server.kill()
        answer = httpx.post(f"{proxy.url}/txt2img", json={"prompt": "a fox"})
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert retry_after(answer) >= 1
