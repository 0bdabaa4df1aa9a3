"""Clients that are slow, silent, greedy, or no HTTP clients at all, over raw sockets."""

import asyncio
import contextlib
import resource
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi import Response
from fastapi.responses import StreamingResponse
from structlog.testing import capture_logs

from app.main import create_app
from app.server import connections
from app.server.connections import HttpProtocol
from app.server.draining import DrainingServer
from app.settings import Settings
from tests.api.test_errors import assert_is_problem
from tests.conftest import serving
from tests.support.gated_pipeline import GatedPipeline

HEAD = b"POST /txt2img HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@contextlib.contextmanager
def service(pipeline: GatedPipeline | None = None, **settings: Any) -> Iterator[httpx.URL]:
    load = None if pipeline is None else pipeline.load
    app = create_app(Settings(model="fake", **settings), load_pipelines=load)
    with serving(app) as url:
        yield httpx.URL(url)


@contextlib.contextmanager
def connected(url: httpx.URL, *sent: bytes) -> Iterator[socket.socket]:
    with socket.create_connection((url.host, url.port or 0), timeout=20) as connection:
        for part in sent:
            connection.sendall(part)
        yield connection


def answer(connection: socket.socket) -> httpx.Response | None:
    """What comes until the service closes the connection; None if nothing does."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            received += part
    if not received:
        return None
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return httpx.Response(int(first.split()[1]), headers=headers, content=body)


def is_open(connection: socket.socket) -> bool:
    connection.settimeout(0.01)
    try:
        return connection.recv(1) != b""
    except TimeoutError:
        return True
    except ConnectionResetError:
        return False


def trickle(connection: socket.socket, *, every_s: float = 0.05) -> threading.Event:
    """Send a byte now and then, until the connection breaks or the event is set."""
    stop = threading.Event()

    def send() -> None:
        with contextlib.suppress(OSError):
            while not stop.wait(every_s):
                connection.sendall(b"a")

    threading.Thread(target=send, daemon=True).start()
    return stop


# Headers.


def test_a_connection_that_never_sends_a_request_is_closed() -> None:
    with service(header_timeout_s=0.3) as url, connected(url) as connection:
        assert answer(connection) is None


def test_a_header_that_trickles_in_is_answered_with_408_and_closed() -> None:
    with service(header_timeout_s=0.3) as url, connected(url, b"GET /healthz/live HTTP/1.1\r\nX: ") as connection:
        stop = trickle(connection)
        refused = answer(connection)
        stop.set()
    assert refused is not None
    assert_is_problem(refused, 408, "request_timeout")
    assert refused.headers["connection"] == "close"
    assert refused.headers["x-content-type-options"] == "nosniff"


def test_the_second_header_of_a_connection_is_held_to_its_time_too() -> None:
    ask = b"GET /healthz/live HTTP/1.1\r\nHost: x\r\n\r\n"
    with service(header_timeout_s=0.5) as url, connected(url, ask) as connection:
        received = b""
        while b'{"status":"live"}' not in received:
            received += connection.recv(65536)
        connection.sendall(b"GET /healthz/live HTT")
        stop = trickle(connection)
        refused = answer(connection)
        stop.set()
    assert refused is not None
    assert_is_problem(refused, 408, "request_timeout")


def test_a_request_in_progress_is_not_held_to_the_header_s_time(pipeline: GatedPipeline) -> None:
    with service(pipeline, header_timeout_s=0.2) as url:
        pipeline.close()
        threading.Timer(0.8, pipeline.gate.set).start()
        assert httpx.post(f"{url}/txt2img", json={"prompt": "a"}).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        b"X: " + b"a" * 20_000 + b"\r\n",
        b"".join(b"X-%d: 1\r\n" % i for i in range(101)),
        b"Cookie: " + b"a" * 5_000_000 + b"\r\n",
    ],
    ids=["20 kB", "101 fields", "5 MB"],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_a_header_that_is_too_large_is_431(header: bytes, at_once: bool) -> None:
    request = b"GET /healthz/live HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n"
    middle = len(request) if at_once else len(request) // 2
    with service() as url, socket.create_connection((url.host, url.port or 0), timeout=20) as connection:
        with contextlib.suppress(OSError):  # the service may hang up before it has read it all
            connection.sendall(request[:middle])
            time.sleep(0.1)
            connection.sendall(request[middle:])
        refused = answer(connection)
    if refused is not None or len(header) < 1_000_000:
        assert refused is not None
        assert_is_problem(refused, 431, "headers_too_large")


def test_a_header_with_as_much_as_is_allowed_is_taken() -> None:
    fields = {f"X-{i}": "a" * 150 for i in range(90)}
    with service() as url:
        assert httpx.get(f"{url}/healthz/live", headers=fields).status_code == 200


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://service.example/healthz/live", 200),
        ("HTTP://service.example:8000/v1/models?a=1", 200),
        ("https://service.example", 200),
        ("http://service.example?a=1", 200),
        ("http://service.example/nothing", 404),
        ("http://service.example/healthz/live#a", 200),
        ("http:///healthz/live", 400),
        ("http://user@service.example/healthz/live", 400),
        ("*", 404),
    ],
)
def test_a_target_that_is_a_whole_uri_is_served_as_its_path_is(target: str, status: int) -> None:
    sent = f"GET {target} HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n".encode()
    with service() as url, connected(url, sent) as connection:
        response = answer(connection)
    assert response is not None
    assert response.status_code == status


def test_the_host_of_a_whole_uri_counts_and_that_of_the_field_does_not() -> None:
    """Or a page of another site could pass for the service's own."""
    body = b'{"prompt": "a cat"}'
    header = "POST http://{uri}/txt2img HTTP/1.1\r\nHost: {host}\r\nOrigin: http://app.example\r\nConnection: close\r\n"
    statuses = []
    for uri, host in (("app.example", "other"), ("other", "app.example")):
        sent = (
            header.format(uri=uri, host=host).encode() + b"Content-Type: application/json\r\nContent-Length: 19\r\n\r\n"
        )
        with service() as url, connected(url, sent + body) as connection:
            response = answer(connection)
        assert response is not None
        statuses.append(response.status_code)
    assert statuses == [200, 403]


def test_a_path_is_logged_without_what_a_terminal_would_obey() -> None:
    with service() as url, capture_logs() as lines:
        with connected(url, b"GET /a%1b[2J%0a%c3%a9 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") as connection:
            answer(connection)
        (line,) = (line for line in lines if line["event"] == "request")
    assert line["path"] == "/a%1B[2J%0A%C3%A9"


# Bodies.


@pytest.mark.parametrize("path", ["/txt2img", "/img2img"])
@pytest.mark.parametrize("framing", [b"Content-Length: 1000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
def test_a_body_that_trickles_in_is_408_and_holds_no_place_meanwhile(
    pipeline: GatedPipeline, path: str, framing: bytes
) -> None:
    content_type = b"application/json" if path == "/txt2img" else b"multipart/form-data; boundary=b"
    head = b"POST " + path.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Type: " + content_type + b"\r\n" + framing
    with service(pipeline, body_timeout_s=1, max_queue=0) as url, connected(url, head) as connection:
        connection.sendall(b"400\r\n" if b"chunked" in framing else b"")
        connection.sendall(b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n')
        stop = trickle(connection)
        assert httpx.post(f"{url}/txt2img", json={"prompt": "a"}).status_code == 200  # there is one place
        refused = answer(connection)
        stop.set()
    assert refused is not None
    assert_is_problem(refused, 408, "request_timeout")
    assert refused.headers["connection"] == "close"


def test_what_is_still_sent_of_a_body_after_its_answer_is_read_for_a_while_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "_LINGER_S", 0.5)
    head = b"POST /txt2img HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 100000\r\n\r\n"
    with service() as url, connected(url, head) as connection:
        stop = trickle(connection)
        refused = answer(connection)  # that it ends is the point
        stop.set()
    assert refused is not None
    assert_is_problem(refused, 415, "unsupported_media_type")


@pytest.mark.parametrize(("limit", "status"), [(4096, 413), (1 << 20, 503)])
def test_a_client_that_is_told_to_close_while_it_sends_its_body_is_not_cut_off(
    pipeline: GatedPipeline, limit: int, status: int
) -> None:
    head = b"POST /img2img HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    app = create_app(Settings(model="fake", max_body_bytes=limit), load_pipelines=pipeline.load)
    with serving(app) as url:
        if status == 503:
            app.state.context.engine.admission.drain()
        with connected(httpx.URL(url), head, b"Content-Length: 500000\r\n\r\n") as connection:
            for _ in range(5):
                time.sleep(0.05)
                connection.sendall(bytes(100_000))  # which would raise
            refused = answer(connection)
    assert refused is not None
    assert refused.status_code == status
    assert refused.headers["connection"] == "close"


@pytest.mark.parametrize(("spaces", "status"), [(900, 200), (5000, 400)])
def test_a_body_in_thousands_of_tiny_chunks_is_refused(spaces: int, status: int) -> None:
    body = b"".join(b"1\r\n%c\r\n" % byte for byte in b" " * spaces + b'{"prompt": "a"}') + b"0\r\n\r\n"
    with (
        service() as url,
        connected(url, HEAD, b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n") as connection,
    ):
        connection.sendall(body)
        answered = answer(connection)
    assert answered is not None
    assert answered.status_code == status


def test_a_body_that_is_no_http_is_refused_without_a_crash(caplog: pytest.LogCaptureFixture) -> None:
    request = HEAD.replace(b"json", b"xml") + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"
    with service() as url, connected(url, request) as connection:
        refused = answer(connection)
        time.sleep(0.2)
    assert refused is not None
    assert_is_problem(refused, 400, "malformed_request")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_large_bodies_on_their_way_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 4096
    part = b"--b\r\nContent-Disposition: form-data; name=prompt\r\n\r\n".ljust(limit - 100, b"a")
    head = (
        b"POST /img2img HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        b"Content-Length: %d\r\n\r\n" % (limit - 1)
    )
    monkeypatch.setattr(connections, "_LINGER_S", 0.5)
    with service(max_body_bytes=limit) as url, contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(connected(url, head, part))
        time.sleep(0.3)
        with connected(url, head, part) as connection:
            refused = answer(connection)
        assert httpx.post(f"{url}/txt2img", json={"prompt": "a"}).status_code == 200
        stack.close()
        time.sleep(0.3)
        files = {"image": b"no picture"}
        assert httpx.post(f"{url}/img2img", data={"prompt": "a"}, files=files).status_code == 415
    assert refused is not None
    assert_is_problem(refused, 429, "queue_full")
    assert refused.headers["retry-after"] == "1"


# Answers.


def test_a_client_that_does_not_read_its_answer_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_SEND_STALL_S", 0.3)
    app = create_app(Settings(model="fake"))

    @app.get("/large")  # the buffers between us take megabytes
    async def large() -> Response:
        return Response(bytes(64 << 20))

    with serving(app) as url, connected(httpx.URL(url), b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
        time.sleep(2)  # reads nothing
        received = received_bytes(connection)
    assert 0 < received < 60 << 20


def test_a_client_that_leaves_the_last_bytes_of_its_answer_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_SEND_STALL_S", 0.5)
    made: list[HttpProtocol] = []
    connection_made = HttpProtocol.connection_made

    def note(self: HttpProtocol, transport: asyncio.Transport) -> None:
        made.append(self)
        connection_made(self, transport)

    monkeypatch.setattr(HttpProtocol, "connection_made", note)
    app = create_app(Settings(model="fake"))

    async def until_something_is_unsent() -> AsyncIterator[bytes]:
        while not made[-1].transport.get_write_buffer_size():
            yield bytes(4096)

    @app.get("/long")
    async def long() -> StreamingResponse:
        return StreamingResponse(until_something_is_unsent())

    ask = b"GET /long HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with serving(app) as url, connected(httpx.URL(url), ask):
        deadline = time.monotonic() + 20
        while not made or made[-1] in made[-1].connections:
            assert time.monotonic() < deadline
            time.sleep(0.1)


# Connections.


def test_clients_that_do_not_read_make_room_as_those_do_that_do_not_send() -> None:
    size = 16 << 20
    app = create_app(Settings(model="fake", max_connections=16))

    @app.get("/large")
    async def large() -> Response:
        return Response(bytes(size))

    ask = b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with serving(app) as url, contextlib.ExitStack() as stack:
        unread = []
        for _ in range(24):
            unread.append(stack.enter_context(connected(httpx.URL(url), ask)))
            time.sleep(0.1)
        assert httpx.get(f"{url}/healthz/live").status_code == 200
        received = [received_bytes(connection) for connection in unread]
    assert [size <= each for each in received] == [False] * 9 + [True] * 15


def received_bytes(connection: socket.socket) -> int:
    received = 0
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 20):
            received += len(part)
    return received


def test_2000_idle_connections_do_not_stop_probes_or_pictures_and_are_closed_in_time() -> None:
    with service(header_timeout_s=5) as url, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connected(url)) for _ in range(2000)]
        for path in ("/healthz/live", "/healthz/ready"):
            assert httpx.get(f"{url}{path}").status_code == 200
        assert httpx.post(f"{url}/txt2img", json={"prompt": "a"}).status_code == 200
        assert is_open(idle[-1])
        deadline = time.monotonic() + 20
        while is_open(idle[-1]):
            assert time.monotonic() < deadline
        assert not any(is_open(connection) for connection in idle)


def test_past_the_limit_the_connection_that_kept_us_waiting_longest_makes_room(pipeline: GatedPipeline) -> None:
    with service(pipeline, max_connections=16) as url, contextlib.ExitStack() as stack:
        pipeline.close()
        body = b'{"prompt": "a"}'
        asked = stack.enter_context(connected(url, HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body))
        assert pipeline.entered.acquire(timeout=10)
        slow = stack.enter_context(connected(url, HEAD + b"Content-Length: 9\r\n\r\n{"))
        time.sleep(0.2)
        idle = [stack.enter_context(connected(url)) for _ in range(50)]
        assert httpx.get(f"{url}/healthz/live").status_code == 200
        assert [is_open(connection) for connection in idle[-10:]] == [True] * 10
        assert not any(is_open(connection) for connection in idle[:30])
        assert not is_open(slow)
        pipeline.gate.set()
        asked.settimeout(20)
        assert asked.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(("hard", "connections", "files"), [(524_288, 4096, 10_496), (4096, 896, 4096)])
def test_open_files_suffice_for_connections_what_they_read_and_a_flood(
    monkeypatch: pytest.MonkeyPatch, hard: int, connections: int, files: int
) -> None:
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits))
    app = create_app(Settings(model="fake"))
    server = DrainingServer(app, app.state.context.settings)
    assert raised == [(files, hard)]
    assert server.config.http.keywords["limits"].max_connections == connections  # type: ignore[union-attr]


# Where a request comes from.


@pytest.mark.parametrize(
    ("trusted", "status"), [("", [200, 429]), ("10.0.0.0/8", [200, 429]), ("127.0.0.0/8", [200, 200])]
)
def test_x_forwarded_for_tells_the_client_only_when_a_trusted_proxy_says_so(trusted: str, status: list[int]) -> None:
    """Two clients behind one proxy have a limit each; one that makes up addresses has one in all."""
    with service(trusted_proxies=trusted, rate_limit="1/hour") as url:
        answers = [
            httpx.post(f"{url}/txt2img", json={"prompt": "a"}, headers={"X-Forwarded-For": address})
            for address in ("203.0.113.1", "203.0.113.2")
        ]
    assert [one.status_code for one in answers] == status


def test_an_address_that_a_client_writes_before_the_proxy_s_is_not_believed() -> None:
    with service(trusted_proxies="127.0.0.1", rate_limit="1/hour") as url:
        answers = [
            httpx.post(f"{url}/txt2img", json={"prompt": "a"}, headers={"X-Forwarded-For": f"{made_up}, 203.0.113.1"})
            for made_up in ("198.51.100.1", "198.51.100.2")
        ]
    assert [one.status_code for one in answers] == [200, 429]
