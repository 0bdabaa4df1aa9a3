"""Traces, as a collector gets them: a real exporter, its real protocol, and a service in a process of its own."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from app.errors import TracesError
from app.main import create_app
from app.observability.traces import Tracing
from app.settings import Settings
from benchmarks.support.ports import free_port
from tests.cli.test_commands import ask_in_background, errors
from tests.conftest import StartServer, png, running, serving, until
from tests.support.gated_pipeline import GatedPipeline

TXT2IMG = {"prompt": "a secret fox", "width": 64, "height": 64, "seed": 3}
CLIENTS_TRACE, CLIENTS_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """A collector of spans: it takes OTLP over HTTP, as `http/protobuf`."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resource: dict[str, Any] = {}
        self.complete = threading.Event()
        self.answer: Callable[[], int] = lambda: 200
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
                body = self.rfile.read(int(self.headers["content-length"]))
                status = collector.answer()
                if status == 200:
                    collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def take(self, sent: ExportTraceServiceRequest) -> None:
        for resource in sent.resource_spans:
            self.resource = {one.key: value(one.value) for one in resource.resource.attributes}
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]

    def wait_for(self, count: int) -> list[Span]:
        """Wait for as many server spans."""
        deadline = time.monotonic() + 20
        while len(found := [span for span in self.spans if span.kind == Span.SPAN_KIND_SERVER]) < count:
            assert time.monotonic() < deadline, self.spans
            time.sleep(0.01)
        return found

    def stages(self, server: Span) -> dict[str, Span]:
        """The spans below a server span, by their names."""
        below = [span for span in self.spans if span.parent_span_id == server.span_id]
        assert all(span.trace_id == server.trace_id for span in below)
        assert len({span.name for span in below}) == len(below)
        return {span.name: span for span in below}


def value(any_value: AnyValue) -> Any:
    kind = any_value.WhichOneof("value")
    assert kind is not None
    return getattr(any_value, kind)


def attributes(span: Span) -> dict[str, Any]:
    return {one.key: value(one.value) for one in span.attributes}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that services send their spans to without delay."""
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


def request_lines(log: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, log.splitlines()) if line["event"] == "request"]


# What a trace says.


def test_a_request_is_a_span_with_its_stages_goes_on_with_its_clients_trace_and_is_found_in_the_log(
    start_server: StartServer, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")  # FastAPI's own spans say the query
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.name=other")
    server = start_server(model="fake:0.05")
    url = server.wait_until_started()
    sent = {"traceparent": f"00-{CLIENTS_TRACE}-{CLIENTS_SPAN}-01", "tracestate": "vendor=1", "X-Request-ID": "mine"}
    answer = httpx.post(
        f"{url}/img2img?a=secret", data={"prompt": "a secret fox"}, files={"image": png()}, headers=sent
    )
    assert answer.status_code == 200
    httpx.get(f"{url}/healthz/ready")
    httpx.get(f"{url}/metrics")

    (span,) = collector.wait_for(1)
    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.trace_state) == (
        CLIENTS_TRACE,
        CLIENTS_SPAN,
        "vendor=1",
    )
    assert answer.headers["traceparent"] == f"00-{CLIENTS_TRACE}-{span.span_id.hex()}-01"
    assert span.name == "POST /img2img"
    seed = int(answer.headers["x-seed"])
    assert attributes(span) == {
        "http.request.method": "POST",
        "http.route": "/img2img",
        "http.response.status_code": 200,
        "url.path": "/img2img",
        "url.scheme": "http",
        "turbo.request_id": "mine",
        "turbo.mode": "img2img",
        "turbo.seed": seed,
        "turbo.steps": 1,
        "turbo.size": "512x512",
        "turbo.batch_pictures": 1,
    }
    stages = collector.stages(span)
    assert list(stages) == ["decode", "queue", "inference", "encode"]
    picture = {"turbo.mode": "img2img", "turbo.steps": 1, "turbo.size": "512x512", "turbo.pictures": 1}
    runs = {"turbo.model": "fake", "turbo.device": "none"}
    assert attributes(stages["queue"]) == picture | runs
    assert attributes(stages["inference"]) == picture | runs | {"turbo.call": 1, "turbo.batch_pictures": 1}
    assert attributes(stages["encode"]) == {"turbo.media_type": "image/png", "turbo.pictures": 1}
    times = [span.start_time_unix_nano]
    for stage in stages.values():
        times += [stage.start_time_unix_nano, stage.end_time_unix_nano]
    assert [*times, span.end_time_unix_nano] == sorted([*times, span.end_time_unix_nano])
    assert stages["inference"].end_time_unix_nano - stages["inference"].start_time_unix_nano > 45_000_000
    assert abs(span.end_time_unix_nano / 1e9 - time.time()) < 60

    assert (collector.resource["service.name"], collector.resource["deployment.environment.name"]) == ("other", "test")
    (line,) = request_lines(server.log)
    assert (line["trace_id"], line["span_id"]) == (CLIENTS_TRACE, span.span_id.hex())
    assert "secret" not in str(collector.spans)
    server.terminate()
    assert server.wait() == 0
    assert len(collector.wait_for(1)) == 1  # none of the health check and the scrape, now that all are sent


async def test_a_malformed_traceparent_is_ignored_and_an_unknown_path_is_no_name(
    collector: Collector, pipeline: GatedPipeline
) -> None:
    async with running(create_app(Settings(model="fake"), load_pipelines=pipeline.load)) as client:
        malformed = {"traceparent": "00-00000000000000000000000000000000-00f067aa0ba902b7-01"}
        answer = await client.request("BREW", "/nothing/of/mine?a=secret", headers=malformed)
        assert answer.status_code == 404
    (span,) = collector.wait_for(1)
    assert span.trace_id.hex() == answer.headers["traceparent"].split("-")[1] != "0" * 32
    assert not span.parent_span_id
    assert span.name == "HTTP"
    told = attributes(span)
    assert (told["http.request.method"], told["url.path"]) == ("_OTHER", "/nothing/of/mine")
    assert (told["error.type"], span.status.code) == ("not_found", Status.STATUS_CODE_UNSET)
    assert "http.route" not in told
    assert "secret" not in str(span)


async def test_a_prompt_is_in_a_trace_where_it_may_be_in_the_log(collector: Collector) -> None:
    async with running(create_app(Settings(model="fake", log_prompts=True))) as client:
        await client.post("/txt2img", json=TXT2IMG)
    (span,) = collector.wait_for(1)
    assert attributes(span)["turbo.prompt"] == "a secret fox"


async def test_requests_of_one_call_have_its_number(collector: Collector, pipeline: GatedPipeline) -> None:
    app = create_app(Settings(model="fake"), load_pipelines=pipeline.load)
    async with running(app) as client:
        pipeline.close()
        requests = [asyncio.create_task(client.post("/txt2img", json=TXT2IMG)) for _ in range(3)]
        await until(lambda: pipeline.calls and app.state.context.engine.admission.waiting == 2)
        pipeline.gate.set()
        assert {answer.status_code for answer in await asyncio.gather(*requests)} == {200}
    calls = [attributes(collector.stages(span)["inference"]) for span in collector.wait_for(3)]
    numbers = sorted((call["turbo.call"], call["turbo.batch_pictures"]) for call in calls)
    first, _ = numbers[0]
    assert numbers == [(first, 1), (first + 1, 2), (first + 1, 2)]


async def test_a_request_that_is_given_up_ends_the_span_of_the_stage_that_it_is_in(
    collector: Collector, pipeline: GatedPipeline
) -> None:
    settings = Settings(model="fake", deadline_s=0.3, batching="off")
    async with running(create_app(settings, load_pipelines=pipeline.load)) as client:
        pipeline.close()
        requests = [asyncio.create_task(client.post("/txt2img", json=TXT2IMG)) for _ in range(2)]
        assert [answer.status_code for answer in await asyncio.gather(*requests)] == [504, 504]
        pipeline.gate.set()
    told = {}
    for span in collector.wait_for(2):
        assert (span.status.code, attributes(span)["error.type"]) == (Status.STATUS_CODE_ERROR, "deadline_exceeded")
        stages = collector.stages(span)
        told[len(stages)] = {
            name: (stage.status.code, attributes(stage).get("error.type")) for name, stage in stages.items()
        }
    fault = (Status.STATUS_CODE_ERROR, "deadline_exceeded")
    assert told == {1: {"queue": fault}, 2: {"queue": (Status.STATUS_CODE_UNSET, None), "inference": fault}}


def test_a_client_that_leaves_is_why_its_stage_ended(collector: Collector, pipeline: GatedPipeline) -> None:
    with serving(create_app(Settings(model="fake"), load_pipelines=pipeline.load)) as url:
        pipeline.close()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/txt2img", json=TXT2IMG, timeout=0.2)
        (span,) = collector.wait_for(1)
        pipeline.gate.set()
    left = collector.stages(span)["inference"]
    assert (left.status.code, attributes(left)["error.type"]) == (Status.STATUS_CODE_ERROR, "client_disconnected")
    assert (attributes(span)["http.response.status_code"], attributes(span)["error.type"]) == (
        499,
        "client_disconnected",
    )


async def test_of_an_inpainted_picture_the_request_says_the_finished_size_and_the_stages_the_drawn_one(
    collector: Collector,
) -> None:
    form = {"prompt": "a", "width": "128", "height": "128", "padding": "0"}
    files = {"image": png((96, 80)), "mask": png((96, 80), "white")}
    async with running(create_app(Settings(model="fake"))) as client:
        assert (await client.post("/inpaint", data=form, files=files)).status_code == 200
    (span,) = collector.wait_for(1)
    inference = attributes(collector.stages(span)["inference"])
    assert (attributes(span)["turbo.mode"], attributes(span)["turbo.size"]) == ("inpaint", "96x80")
    assert (inference["turbo.mode"], inference["turbo.size"], inference["turbo.steps"]) == ("inpaint", "128x128", 4)


async def test_a_stage_that_fails_says_with_what(collector: Collector, pipeline: GatedPipeline) -> None:
    async with running(create_app(Settings(model="fake"), load_pipelines=pipeline.load)) as client:
        await client.post("/img2img", data={"prompt": "a"}, files={"image": png()[:60]})
        pipeline.error = RuntimeError("a bug")
        await client.post("/txt2img", json=TXT2IMG)
    upload, bug = collector.wait_for(2)
    assert attributes(collector.stages(upload)["decode"])["error.type"] == "invalid_image"
    assert (attributes(upload)["error.type"], upload.status.code) == ("invalid_image", Status.STATUS_CODE_UNSET)
    assert attributes(collector.stages(bug)["inference"])["error.type"] == "inference_failed"
    assert (attributes(bug)["error.type"], bug.status.code) == ("inference_failed", Status.STATUS_CODE_ERROR)


# When there are traces.


def test_without_a_word_of_opentelemetry_s_variables_its_sdk_is_not_imported() -> None:
    script = """
import asyncio, sys, httpx
from app.main import create_app
from app.settings import Settings

async def main():
    app = create_app(Settings(model="fake"))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            answer = await client.post("/txt2img", json={"prompt": "a"}, headers={"traceparent": sys.argv[1]})
    assert answer.status_code == 200 and "traceparent" not in answer.headers
    assert not [name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", script, f"00-{CLIENTS_TRACE}-{CLIENTS_SPAN}-01"], check=True)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_SERVICE_NAME": "a"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_SDK_DISABLED": "True", "OTEL_TRACES_EXPORTER": "otlp"},
    ],
)
async def test_traces_are_off_unless_they_are_asked_for(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, variables)
    async with Tracing() as tracing:
        assert tracing.begin({}) is None


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "PROTOCOL=grpc"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, "PROTOCOL=http/json"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "EXPORTER=zipkin"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "ENDPOINT=collector:4318"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[bad"}, "must be http:// or https:// and a host"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://user@:4318"}, "must be http:// or https:// and a host"),
        ({"OTEL_TRACES_EXPORTER": "otlp console"}, "must be otlp, console or none"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_BSP_MAX_QUEUE_SIZE": "-1"}, "max_queue_size"),
    ],
)
async def test_what_cannot_be_had_ends_the_start_with_its_name(
    variables: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, variables)
    with pytest.raises(TracesError, match=named):
        await Tracing().__aenter__()


def test_what_cannot_be_had_is_one_line_of_the_log_and_exit_code_3(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    server = start_server(model="fake")
    assert server.wait() == 3
    (told,) = (event for event in errors(server.log) if event.startswith("cannot start"))
    assert "OTEL_EXPORTER_OTLP_PROTOCOL=grpc" in told


async def test_who_is_not_sampled_is_told_so_and_not_traced(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    sampled = {"traceparent": f"00-{CLIENTS_TRACE}-{CLIENTS_SPAN}-01"}
    async with running(create_app(Settings(model="fake"))) as client:
        answers = [await client.post("/txt2img", json=TXT2IMG, headers=headers) for headers in ({}, sampled)]
    flags = [int(answer.headers["traceparent"].split("-")[3], 16) for answer in answers]
    assert [flag & 1 for flag in flags] == [0, 1]
    assert [span.trace_id.hex() for span in collector.wait_for(1)] == [CLIENTS_TRACE]


def test_the_console_may_have_them(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    server = start_server(model="fake")
    httpx.get(f"{server.wait_until_started()}/docs")
    server.terminate()
    assert server.wait() == 0
    assert '"name": "GET /docs"' in capfd.readouterr().out


async def test_pages_of_other_sites_may_send_their_trace_and_read_the_answer_s(collector: Collector) -> None:
    del collector
    async with running(create_app(Settings(model="fake", cors_origins="https://app.example"))) as client:
        asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        asked["Access-Control-Request-Headers"] = "traceparent,tracestate"
        assert (await client.options("/txt2img", headers=asked)).status_code == 200
        answer = await client.post("/txt2img", json=TXT2IMG, headers={"Origin": "https://app.example"})
    assert "traceparent" in answer.headers["access-control-expose-headers"]


# Collectors.


def test_at_sigterm_the_last_request_s_spans_are_sent(
    start_server: StartServer, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    server = start_server(model="fake:0.5")
    answer = ask_in_background(server.wait_until_started())
    server.terminate()
    assert answer.result().status_code == 200
    assert server.wait() == 0
    (span,) = collector.wait_for(1)
    assert list(collector.stages(span)) == ["queue", "inference", "encode"]


@pytest.mark.parametrize("collector_is", ["gone", "silent"])
def test_without_a_collector_that_takes_them_requests_are_served_the_log_stays_short_and_the_end_comes(
    start_server: StartServer, collector: Collector, monkeypatch: pytest.MonkeyPatch, collector_is: str
) -> None:
    over = threading.Event()
    if collector_is == "gone":
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    tried = threading.Event()

    def answer() -> int:
        tried.set()
        over.wait(30)
        return 503

    collector.answer = answer
    set_all(monkeypatch, {"OTEL_BSP_MAX_QUEUE_SIZE": "8", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4"})
    server = start_server(model="fake")
    url = server.wait_until_started()
    with httpx.Client(base_url=url) as client:
        for _ in range(20):  # each has more spans than half the queue
            assert client.post("/txt2img", json=TXT2IMG).status_code == 200
    assert collector_is == "gone" or tried.wait(10)
    server.terminate()
    assert server.wait(15) == 0  # the SDK by itself would take 30 s
    over.set()
    complaints = [line for line in map(json.loads, server.log.splitlines()) if "opentelemetry" in line["logger"]]
    assert len(complaints) == len({line["logger"] for line in complaints}) <= 2
    assert len(request_lines(server.log)) == 20


def set_all(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> None:
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
