"""Traces: a span for each request and for each of its stages, where OpenTelemetry's own variables ask for them.

Where they do not, OpenTelemetry's SDK is not imported. FastAPI's own spans are switched off in `app.main`: they say a
request's query, where a client may have put its prompt.
"""

import asyncio
import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from opentelemetry import propagate, trace

from app import __version__
from app.errors import TracesError, TurboError, first_line
from app.inference.generation import Stage
from app.pipelines.base import GenerationParams

if TYPE_CHECKING:  # imported when traces are asked for
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

_SERVICE_NAME = "sdxl-turbo-server"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
_SERVER_ERROR = 500

_FLUSH_S = 3
"""Seconds that the last spans have to be sent when the service ends. A supervisor allows ten beside the time to drain,
and answers under way may take five of them."""

_COMPLAINT_S = 300
"""Seconds between two lines of one logger about a collector that is not there; the exporter would write several for
each batch."""

_COMPLAINING = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal")

_FACTS = {
    "mode": "turbo.mode",
    "seed": "turbo.seed",
    "steps": "turbo.steps",
    "size": "turbo.size",
    "batch": "turbo.batch_pictures",
    "prompt": "turbo.prompt",  # in the log only where TURBO_LOG_PROMPTS allows it
}
"""What of a request's log line its span says too."""


class Trace:
    """The trace of one request; this one is of a request that has none, and does nothing."""

    headers: Mapping[str, str] = {}
    """What the answer says of it."""

    ids: Mapping[str, str] = {}
    """What a log line says of it."""

    def describe(self, params: Sequence[GenerationParams]) -> None:
        """Note the pictures that the request asks for: attributes of the queue and inference spans."""

    def add(self, stage: Stage) -> None:
        """Make a span of a stage that has ended."""

    def end(
        self, *, route: str | None, status: int, error_code: str | None, request_id: str, facts: Mapping[str, Any]
    ) -> None:
        """End the request's span.

        Args:
            route: The route's template; None if the path has none.
            status: The answer's HTTP status.
            error_code: The machine code of the error that the answer is, if it is one.
            request_id: What `X-Request-ID` says.
            facts: What handlers said for the log line.
        """


class Tracing:
    """Starts traces. An async context manager: entering does what OpenTelemetry's variables ask for.

    Leaving sends what is left, and gives up on that after a few seconds. Spans are sent by a thread of their own: a
    collector that is slow or gone keeps nobody waiting, and what it does not take is dropped.
    """

    def __init__(self) -> None:
        self._provider: TracerProvider | None = None
        self._tracer: trace.Tracer | None = None

    async def __aenter__(self) -> Self:
        """Start to make spans, if they are asked for.

        Raises:
            TracesError: What is asked for cannot be had; the text names the variable.
        """
        exporters = _exporters(os.environ)
        if exporters:
            try:
                self._provider = _provider(exporters)
            except ValueError as error:
                raise TracesError(
                    f"Traces cannot be made as OpenTelemetry's variables ask: {first_line(error)}."
                ) from error
            self._tracer = self._provider.get_tracer("app", __version__)
            for name in _COMPLAINING:
                logging.getLogger(name).addFilter(_Seldom())
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Send the spans that are left."""
        if self._provider is None:
            return
        loop, sent, shutdown = asyncio.get_running_loop(), asyncio.Event(), self._provider.shutdown

        def send_rest() -> None:
            shutdown()
            with suppress(RuntimeError):  # the loop is closed: it was given up
                loop.call_soon_threadsafe(sent.set)

        # Not a thread of the loop's pool, which would be joined: a collector that does not answer takes its time.
        threading.Thread(target=send_rest, name="last-spans", daemon=True).start()
        try:
            async with asyncio.timeout(_FLUSH_S):
                await sent.wait()
        except TimeoutError:
            logging.getLogger(__name__).warning("the last spans were not sent within %d s", _FLUSH_S)

    def begin(self, scope: Mapping[str, Any]) -> Trace:
        """Begin the trace of a request, given as its ASGI scope, or go on with that of its client."""
        return Trace() if self._tracer is None else _SpanTrace(self._tracer, scope)


class _SpanTrace(Trace):
    """The trace of one request as OpenTelemetry's spans, by the semantic conventions of HTTP servers.

    Stages are timed by the monotonic clock, and placed on the wall clock from where the request began.
    """

    def __init__(self, tracer: trace.Tracer, scope: Mapping[str, Any]) -> None:
        sent = defaultdict(list)
        for name, value in scope["headers"]:
            sent[name.decode("latin-1")].append(value.decode("latin-1"))
        self._tracer = tracer
        self._method = scope["method"] if scope["method"] in _METHODS else "HTTP"
        self._epoch_ns = time.time_ns() - time.monotonic_ns()
        self._cut_short: list[tuple[trace.Span, int]] = []
        self._attributes: dict[str, str | int] = {}
        self._span = tracer.start_span(
            self._method,
            propagate.extract(sent),
            trace.SpanKind.SERVER,
            {
                "http.request.method": "_OTHER" if self._method == "HTTP" else self._method,
                "url.path": scope["path"],
                "url.scheme": scope["scheme"],
            },
        )
        self._context = trace.set_span_in_context(self._span)
        identity = self._span.get_span_context()
        trace_id, span_id = trace.format_trace_id(identity.trace_id), trace.format_span_id(identity.span_id)
        self.headers = {"traceparent": f"00-{trace_id}-{span_id}-{identity.trace_flags:02x}"}
        self.ids = {"trace_id": trace_id, "span_id": span_id}

    def describe(self, params: Sequence[GenerationParams]) -> None:
        first = params[0]
        self._attributes = {
            "mode": first.mode,
            "steps": first.effective_steps,
            "size": f"{first.width}x{first.height}",
            "pictures": len(params),
        }

    def add(self, stage: Stage) -> None:
        span = self._tracer.start_span(stage.name, self._context, start_time=self._at(stage.started))
        attributes = {**(self._attributes if stage.name in ("queue", "inference") else {}), **stage.facts}
        span.set_attributes({f"turbo.{fact}": value for fact, value in attributes.items()})
        end_time, error = self._at(stage.ended), stage.error
        if isinstance(error, asyncio.CancelledError):
            self._cut_short.append((span, end_time))  # the reason is known when the request has its answer
            return
        if error is not None:
            _fail(span, error.code if isinstance(error, TurboError) else type(error).__qualname__)
        span.end(end_time)

    def end(
        self, *, route: str | None, status: int, error_code: str | None, request_id: str, facts: Mapping[str, Any]
    ) -> None:
        for cut, end_time in self._cut_short:
            _fail(cut, error_code or "cancelled")
            cut.end(end_time)
        span = self._span
        span.set_attributes({_FACTS[name]: value for name, value in facts.items() if name in _FACTS})
        span.set_attributes({"http.response.status_code": status, "turbo.request_id": request_id})
        if route is not None:
            span.update_name(f"{self._method} {route}")
            span.set_attribute("http.route", route)
        if status >= _SERVER_ERROR:
            _fail(span, error_code or str(status))
        elif error_code is not None:  # the client's fault, of which the conventions do not make an error of the server
            span.set_attribute("error.type", error_code)
        span.end()

    def _at(self, moment: float) -> int:
        return int(moment * 1e9) + self._epoch_ns


def _fail(span: trace.Span, code: str) -> None:
    span.set_status(trace.StatusCode.ERROR)
    span.set_attribute("error.type", code)


class _Seldom(logging.Filter):
    """Lets one line pass, and then none for a while."""

    _last = float("-inf")

    def filter(self, _: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._last < _COMPLAINT_S:
            return False
        self._last = now
        return True


def _exporters(environ: Mapping[str, str]) -> list[str]:
    """Return the names of the exporters that OpenTelemetry's variables ask for; without a word from them there is none.

    Raises:
        TracesError: One of them is not there, or cannot be had as it is asked for.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    asked = environ.get("OTEL_TRACES_EXPORTER", "")
    names = [word.strip() for word in asked.split(",") if word.strip()]
    if not names and any(environ.get(variable) for variable in _ENDPOINTS):
        names = ["otlp"]
    if "none" in names:
        return []
    if not {"otlp", "console"}.issuperset(names):
        raise TracesError(f"OTEL_TRACES_EXPORTER={asked}: it may be otlp, console or none.")
    if "otlp" in names:
        _check_otlp(environ)
    return names


def _check_otlp(environ: Mapping[str, str]) -> None:
    for variable in _ENDPOINTS:
        if (endpoint := environ.get(variable)) and not _is_http_url(endpoint):
            raise TracesError(f"{variable}={endpoint}: it must be http:// or https:// and a host.")
    for variable in _PROTOCOLS:
        if protocol := environ.get(variable):
            if protocol != _PROTOCOL:
                raise TracesError(
                    f"{variable}={protocol}: spans are sent by {_PROTOCOL} alone, which collectors take at port 4318."
                )
            return  # the first one that is set counts


def _is_http_url(text: str) -> bool:
    try:
        url = urlsplit(text)
    except ValueError:
        return False
    return url.scheme in ("http", "https") and bool(url.hostname)


def _provider(exporters: Sequence[str]) -> "TracerProvider":
    """Make what makes spans. It reads the other variables itself: name, resource, sampler, limits, batches."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    own = {"service.name": _SERVICE_NAME, "service.version": __version__}
    resource = Resource.create({**own, **OTELResourceDetector().detect().attributes})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for name in exporters:
        provider.add_span_processor(BatchSpanProcessor(_exporter(name)))
    return provider


def _exporter(name: str) -> "SpanExporter":
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter  # noqa: PLC0415

        return ConsoleSpanExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

    return OTLPSpanExporter()
