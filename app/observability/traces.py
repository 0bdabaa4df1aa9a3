"""Traces: a span for each request and each of its stages, if OpenTelemetry's variables ask for them.

Otherwise OpenTelemetry's SDK is not imported. `app.main` switches FastAPI's own spans off: they contain the query,
which may contain a prompt.
"""

import asyncio
import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from http import HTTPMethod, HTTPStatus
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from opentelemetry import propagate, trace

from app import __version__
from app.errors import TracesError, TurboError, first_line
from app.inference.generation import Stage

if TYPE_CHECKING:  # imported when traces are asked for
    from opentelemetry.sdk.trace import TracerProvider

_SERVICE_NAME = "sdxl-turbo-server"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"

_FLUSH_S = 3
"""Seconds for sending the last spans when the service ends. A supervisor allows ten beside the time to drain, and
answers may take five of them."""

_REPEAT_S = 300
"""Seconds between two lines of one logger about a missing collector. The exporter writes several for each batch."""

_EXPORT_LOGGERS = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal")

_FACTS = {fact: f"turbo.{fact}" for fact in ("mode", "seed", "steps", "size", "prompt")}
_FACTS["batch"] = "turbo.batch_pictures"
"""Fields of a request's log line that are also attributes of its span. The log has prompts only if an operator asks."""


class Tracing:
    """Starts traces, in an async context manager that follows OpenTelemetry's variables.

    A thread of its own sends the spans, so requests do not wait for a slow collector. Spans that the collector does not
    take are dropped.
    """

    def __init__(self) -> None:
        self._provider: TracerProvider | None = None
        self._tracer: trace.Tracer | None = None

    async def __aenter__(self) -> Self:
        """Start to make spans, if OpenTelemetry's variables ask for them.

        Raises:
            TracesError: The variables ask for traces that cannot be made; the text names the variable.
        """
        exporters = _exporters(os.environ)
        if exporters:
            try:
                self._provider = _provider(exporters)
            except ValueError as error:
                raise TracesError(f"An OpenTelemetry variable is invalid: {first_line(error)}.") from error
            self._tracer = self._provider.get_tracer("app", __version__)
            for name in _EXPORT_LOGGERS:
                logging.getLogger(name).addFilter(_Seldom())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Send the last spans, for a few seconds at most."""
        if self._provider is None:
            return
        # A daemon thread, because the collector may not answer, and the process must end nevertheless.
        sending = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        sending.start()
        await asyncio.to_thread(sending.join, _FLUSH_S)
        if sending.is_alive():
            logging.getLogger(__name__).warning("the last spans were not sent within %d s", _FLUSH_S)

    def begin(self, scope: Mapping[str, Any]) -> "Trace | None":
        """Begin or continue the trace of a request, given as its ASGI scope; None without traces."""
        return None if self._tracer is None else Trace(self._tracer, scope)


class Trace:
    """The trace of one request, by OpenTelemetry's semantic conventions of HTTP servers.

    `headers` and `ids` name it in the answer and in log lines. Stages are timed by the monotonic clock, and placed on
    the wall clock from the start of the request.
    """

    def __init__(self, tracer: trace.Tracer, scope: Mapping[str, Any]) -> None:
        sent = defaultdict(list)
        for name, value in scope["headers"]:
            sent[name.decode("latin-1")].append(value.decode("latin-1"))
        self._tracer = tracer
        self._method = scope["method"] if scope["method"] in HTTPMethod.__members__ else "HTTP"
        self._epoch_ns = time.time_ns() - time.monotonic_ns()
        self._cut_short: list[tuple[trace.Span, int]] = []
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

    def add(self, stage: Stage) -> None:
        """Make a span of a stage that has ended."""
        span = self._tracer.start_span(stage.name, self._context, start_time=self._at(stage.started))
        span.set_attributes({f"turbo.{fact}": value for fact, value in stage.facts.items()})
        end_time, error = self._at(stage.ended), stage.error
        if isinstance(error, asyncio.CancelledError):
            self._cut_short.append((span, end_time))  # the reason is known when the request is answered
            return
        if error is not None:
            _fail(span, error.code if isinstance(error, TurboError) else type(error).__qualname__)
        span.end(end_time)

    def end(
        self, *, route: str | None, status: int, error_code: str | None, request_id: str, facts: Mapping[str, Any]
    ) -> None:
        """End the request's span, with the same facts as its log line."""
        for cut, end_time in self._cut_short:
            _fail(cut, error_code or "cancelled")
            cut.end(end_time)
        span = self._span
        span.set_attributes({_FACTS[name]: value for name, value in facts.items() if name in _FACTS})
        span.set_attributes({"http.response.status_code": status, "turbo.request_id": request_id})
        if route is not None:
            span.update_name(f"{self._method} {route}")
            span.set_attribute("http.route", route)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            _fail(span, error_code or str(status))
        elif error_code is not None:  # by the conventions, a client's fault does not make a server span an error
            span.set_attribute("error.type", error_code)
        span.end()

    def _at(self, moment: float) -> int:
        return int(moment * 1e9) + self._epoch_ns


def _fail(span: trace.Span, code: str) -> None:
    span.set_status(trace.StatusCode.ERROR)
    span.set_attribute("error.type", code)


class _Seldom(logging.Filter):
    """Lets a line pass at most every `_REPEAT_S` seconds."""

    _next = 0.0

    def filter(self, _: logging.LogRecord) -> bool:
        now = time.monotonic()
        passes = now >= self._next
        if passes:
            self._next = now + _REPEAT_S
        return passes


def _exporters(environ: Mapping[str, str]) -> list[str]:
    """Return the names of the exporters that OpenTelemetry's variables ask for; a TracesError says what is invalid."""
    asked = environ.get("OTEL_TRACES_EXPORTER", "")
    names = [name for word in asked.split(",") if (name := word.strip())]
    if not names and any(environ.get(variable) for variable in _ENDPOINTS):
        names = ["otlp"]
    if "none" in names or environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    if not {"otlp", "console"}.issuperset(names):
        raise TracesError(f"OTEL_TRACES_EXPORTER={asked}: it must be otlp, console or none.")
    if "otlp" in names:
        _check_otlp(environ)
    return names


def _check_otlp(environ: Mapping[str, str]) -> None:
    """Check what the exporter would not report at start: an address that is no URL, and a protocol that it ignores."""
    for variable in _ENDPOINTS:
        endpoint = environ.get(variable)
        if endpoint and not _is_http_url(endpoint):
            raise TracesError(f"{variable}={endpoint}: it must be http:// or https:// and a host.")
    variable = next(filter(environ.get, _PROTOCOLS), "")
    if environ.get(variable, _PROTOCOL) != _PROTOCOL:
        raise TracesError(
            f"{variable}={environ[variable]}: spans are sent by {_PROTOCOL} only, which collectors take at port 4318."
        )


def _is_http_url(text: str) -> bool:
    try:
        url = urlsplit(text)
    except ValueError:
        return False
    return url.scheme in ("http", "https") and bool(url.hostname)


def _provider(exporters: Sequence[str]) -> "TracerProvider":
    """Make the SDK's provider, which reads the other variables itself: name, resource, sampler, limits, batches."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter  # noqa: PLC0415

    own = {"service.name": _SERVICE_NAME, "service.version": __version__}
    resource = Resource.create({**own, **OTELResourceDetector().detect().attributes})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for name in exporters:
        exporter = ConsoleSpanExporter() if name == "console" else OTLPSpanExporter()
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider
