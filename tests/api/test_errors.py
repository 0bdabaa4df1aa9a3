import re
import socket
import time
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from app import errors
from app.errors import StartError, TurboError
from app.main import create_app
from app.settings import Settings
from tests.conftest import StartServer, running, serving
from tests.support.gated_pipeline import GatedPipeline


def kinds() -> list[type[TurboError]]:
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TurboError)]


def assert_is_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check the one body that every error has: RFC 9457 and OpenAI's."""
    problem: dict[str, Any] = response.json()
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    assert problem["status"] == status
    assert problem["type"] == f"urn:sdxl-turbo-server:problem:{code}"
    assert problem["code"] == code
    error = problem["error"]
    if isinstance(error, str):  # of POST /, as Hugging Face's clients show it
        assert error == problem["detail"]
    else:
        assert (error["code"], error["message"]) == (code, problem["detail"])
    assert problem["title"]
    assert problem["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    return problem


async def test_every_error_of_the_framework_has_the_one_body(client: httpx.AsyncClient) -> None:
    assert_is_problem(await client.get("/nothing"), 404, "not_found")
    refused = await client.get("/img2img")
    assert_is_problem(refused, 405, "method_not_allowed")
    assert refused.headers["allow"] == "OPTIONS, POST"
    assert_is_problem(await client.post("/txt2img", json={}), 422, "invalid_request")
    assert_is_problem(await client.post("/txt2img", content="{}"), 415, "unsupported_media_type")
    assert_is_problem(await client.get("/docs/assets/nothing.js"), 404, "not_found")
    assert_is_problem(await client.post("/docs/assets/swagger-ui.css"), 405, "method_not_allowed")


async def test_every_invalid_field_is_listed(client: httpx.AsyncClient) -> None:
    response = await client.post("/txt2img", json={"num_inference_steps": 9, "width": 1})
    problem = assert_is_problem(response, 422, "invalid_request")
    assert [field["param"] for field in problem["errors"]] == ["prompt", "num_inference_steps", "width"]


async def test_what_was_sent_is_not_repeated_in_an_error(client: httpx.AsyncClient) -> None:
    response = await client.post("/txt2img", json={"prompt": ["my secret"], "seed": "my secret"})
    assert response.status_code == 422
    assert "my secret" not in response.text


@pytest.mark.parametrize("kind", [kind for kind in kinds() if not issubclass(kind, StartError)])
async def test_every_kind_of_error_reaches_the_client_with_its_status_and_code(
    pipeline: GatedPipeline, kind: type[TurboError]
) -> None:
    async with running(create_app(Settings(model="fake"), load_pipelines=pipeline.load)) as client:
        pipeline.error = kind("The reason.")
        response = await client.post("/txt2img", json={"prompt": "a"})
        assert_is_problem(response, kind.status, kind.code)


def test_the_codes_are_unique_and_every_error_says_when() -> None:
    codes = [kind.code for kind in kinds()]
    assert len(set(codes)) == len(codes)
    for kind in kinds():
        assert kind.__doc__
        assert re.fullmatch(r"[a-z_]+", kind.code)


async def test_what_nobody_expected_is_a_500_that_tells_nothing() -> None:
    app = create_app(Settings(model="fake"))

    @app.get("/broken")
    async def broken() -> None:
        raise ZeroDivisionError("inside")

    async with running(app) as client:
        problem = assert_is_problem(await client.get("/broken"), 500, "internal_error")
        assert "inside" not in str(problem)


@pytest.mark.parametrize("sent", ["abc-123", "0af7651916cd43dd8448eb211c80319c", "a/b:c=d"])
async def test_a_sane_request_id_is_kept(client: httpx.AsyncClient, sent: str) -> None:
    response = await client.get("/healthz/live", headers={"X-Request-ID": sent})
    assert response.headers["x-request-id"] == sent


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, "<script>", 'a"b', "a\tb"])
async def test_an_insane_request_id_is_replaced(client: httpx.AsyncClient, sent: str) -> None:
    response = await client.get("/healthz/live", headers={"X-Request-ID": sent})
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])


LIMIT = 4096
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("path", ["/txt2img", "/img2img"])
@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
def test_a_body_over_the_limit_is_a_413_whether_it_says_its_size_or_not(
    pipeline: GatedPipeline, path: str, chunked: bool
) -> None:
    content_type = "application/json" if path == "/txt2img" else "multipart/form-data; boundary=b"
    head = b'{"prompt": "' if path == "/txt2img" else b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n'
    body = head + b"x" * LIMIT
    settings = Settings.model_validate({"model": "fake", "max_body_bytes": LIMIT})
    with serving(create_app(settings, load_pipelines=pipeline.load)) as url:
        pipeline.calls.clear()
        response = httpx.post(
            url + path,
            content=iter([body[:1000], body[1000:]]) if chunked else body,
            headers={"Content-Type": content_type},
        )
        problem = assert_is_problem(response, 413, "body_too_large")
        assert str(LIMIT) in problem["detail"]
        assert not pipeline.calls


def test_json_has_a_smaller_limit_because_parsing_it_blocks_everybody(pipeline: GatedPipeline) -> None:
    with serving(create_app(Settings(model="fake"), load_pipelines=pipeline.load)) as url:
        response = httpx.post(f"{url}/txt2img", json={f"key {i}": i for i in range(10_000)})
        assert_is_problem(response, 413, "body_too_large")
        assert response.headers["connection"] == "close"
        longest = httpx.post(f"{url}/txt2img", content='{"prompt": "' + r"\ud83d\udc08" * 2000 + '"}', headers=JSON)
        assert longest.status_code == 200


async def test_of_many_invalid_fields_some_are_listed_by_the_start_of_their_names(client: httpx.AsyncClient) -> None:
    response = await client.post("/txt2img", json={f"{i:04}" + "x" * 500: 1 for i in range(100)})
    problem = assert_is_problem(response, 422, "invalid_request")
    assert len(problem["errors"]) == 20
    assert max(len(field["param"]) for field in problem["errors"]) == 100


@pytest.mark.parametrize("charset", ["undefined", "punycode", "idna", "unicode_escape", "utf-7", "no-such-charset"])
async def test_a_form_in_an_odd_charset_is_refused_before_it_is_decoded(
    client: httpx.AsyncClient, charset: str
) -> None:
    field = b"99" * 150_000  # 20 seconds of punycode
    body = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n' + field + b"\r\n--b--\r\n"
    content_type = f"multipart/form-data; boundary=b; charset={charset}"
    started = time.process_time()
    response = await client.post("/img2img", content=body, headers={"Content-Type": content_type})
    assert_is_problem(response, 400, "malformed_body")
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("path", "content_type"), [("/txt2img", "application/json"), ("/img2img", "multipart/form-data; boundary=b")]
)
def test_a_client_that_leaves_in_the_middle_of_its_body_is_a_499_and_no_error_of_ours(
    path: str, content_type: str
) -> None:
    app = create_app(Settings(model="fake"))
    with serving(app) as url:
        address = httpx.URL(url)
        with socket.create_connection((address.host, address.port or 0)) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\nContent-Length: 1000\r\n\r\n--b"
            connection.sendall(head.encode())
        deadline = time.monotonic() + 10
        while 'status="499"' not in (metrics := httpx.get(f"{url}/metrics").text):
            assert time.monotonic() < deadline, metrics
            time.sleep(0.02)
        assert f'turbo_requests_total{{method="POST",route="{path}",status="499"}} 1.0' in metrics


@pytest.mark.parametrize(
    "sent", [b"GARBAGE\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n"]
)
def test_what_is_no_http_gets_the_one_body_too(start_server: StartServer, sent: bytes) -> None:
    address = httpx.URL(start_server(model="fake").wait_until_started())
    with socket.create_connection((address.host, address.port or 0), timeout=10) as connection:
        connection.sendall(sent)
        head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    response = httpx.Response(int(lines[0].split()[1]), headers=headers, content=body)
    assert_is_problem(response, 400, "malformed_request")


async def test_the_cause_of_a_failed_picture_is_logged_once_with_its_traceback(pipeline: GatedPipeline) -> None:
    async with running(create_app(Settings(model="fake"), load_pipelines=pipeline.load)) as client:
        pipeline.error = RuntimeError("the inside")
        with capture_logs() as logs:
            await client.post("/txt2img", json={"prompt": "a"})
    (entry,) = (entry for entry in logs if entry["log_level"] == "error")
    assert entry["code"] == "inference_failed"
    assert isinstance(entry["exc_info"].__cause__, RuntimeError)
