"""Logging and metrics set-up."""

from collections.abc import Iterator
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from app import __version__
from app.errors import StartError, TurboError
from app.inference.engine import Engine, StatusWord
from app.inference.generation import Generated
from app.inference.registry import PipelineRegistry
from app.pipelines.base import Mode

SECONDS_BUCKETS = (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
"""From a step on a fast accelerator to past the default deadline, with a bound at it and at half of it."""

PICTURES_BUCKETS = (1, 2, 4, 8, 16, 32, 64)

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Metrics:
    """The service's Prometheus metrics, in a registry of their own, so that two apps in one process do not meet.

    What the service keeps in plain attributes is read at each scrape, all else is counted as it happens. Series whose
    labels are known from the start are there from the start: the first error of a kind is a rise from 0 then.
    """

    def __init__(self, engine: Engine, registry: PipelineRegistry) -> None:
        # A series for each other one, which says when that began; Prometheus has no use for it.
        disable_created_metrics()  # type: ignore[no-untyped-call] # as the library has it
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "turbo_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "turbo_request_duration_seconds",
            "Time from a request's header to the end of its answer.",
            ["method", "route", "status_class"],
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.requests_in_progress = Gauge(
            "turbo_requests_in_progress",
            "Requests that are arriving, waiting, served or being answered; without health checks and scrapes.",
            registry=self.registry,
        )
        self.errors = Counter(
            "turbo_errors", "Answers that are no success, by the code in their body.", ["code"], registry=self.registry
        )
        self.pictures = Counter("turbo_pictures", "Pictures made for answers.", ["mode"], registry=self.registry)
        self.decode_seconds = self._seconds("decode", "Time that a served request's upload took to decode.")
        self.queue_seconds = self._seconds("queue", "Time that a served request waited for the device.", "mode")
        self.inference_seconds = self._seconds("inference", "Time of the device call that served a request.", "mode")
        self.encode_seconds = self._seconds("encode", "Time that a request's pictures took to encode.", "media_type")
        self.batch_pictures = Histogram(
            "turbo_batch_pictures",
            "Pictures of the device call that served a request.",
            ["mode"],
            buckets=PICTURES_BUCKETS,
            registry=self.registry,
        )
        for mode in Mode:
            for metric in (self.pictures, self.queue_seconds, self.inference_seconds, self.batch_pictures):
                metric.labels(mode)
        for code in _codes(TurboError):
            self.errors.labels(code)
        self.registry.register(_StateCollector(engine, registry))
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def _seconds(self, stage: str, documentation: str, *labels: str) -> Histogram:
        return Histogram(
            f"turbo_{stage}_seconds", documentation, labels, buckets=SECONDS_BUCKETS, registry=self.registry
        )

    def record_request(self, *, method: str, route: str, status: int, duration_s: float) -> None:
        """Count a request. `route` is a template, or one word for all paths that have none."""
        method = method if method in _METHODS else "other"
        self.requests.labels(method, route, str(status)).inc()
        self.request_seconds.labels(method, route, f"{status // 100}xx").observe(duration_s)

    def record_pictures(self, result: Generated) -> None:
        """Count a request that succeeded, and the time of its stages."""
        mode, timings = result.used.mode, result.timings
        self.pictures.labels(mode).inc(len(result.files))
        self.batch_pictures.labels(mode).observe(result.batch_pictures)
        if timings.decode_s:  # 0 without an upload
            self.decode_seconds.observe(timings.decode_s)
        self.queue_seconds.labels(mode).observe(timings.queue_s)
        self.inference_seconds.labels(mode).observe(timings.inference_s)
        self.encode_seconds.labels(result.media_type).observe(timings.encode_s)


def _codes(kind: type[TurboError]) -> Iterator[str]:
    """Yield the codes of a kind of error and of all kinds below it that requests can meet."""
    if not issubclass(kind, StartError):
        yield kind.code
        for narrower in kind.__subclasses__():
            yield from _codes(narrower)


class _StateCollector(Collector):
    """Reads what the service knows of itself. Never waits for the device."""

    def __init__(self, engine: Engine, registry: PipelineRegistry) -> None:
        self._engine = engine
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        status = self._engine.status
        if status.warm:
            loaded = self._registry.loaded
            yield InfoMetricFamily(
                "turbo",
                "What runs: the service's version, the model, its device and number format.",
                {
                    "version": __version__,
                    "model": loaded.model,
                    "device": loaded.device_name,
                    "dtype": loaded.dtype,
                },
            )
        words = GaugeMetricFamily("turbo_status", "1 for what the service is, 0 for what it is not.", labels=["status"])
        for word in get_args(StatusWord):
            words.add_metric([word], float(word == status.word))
        yield words
        gauge = GaugeMetricFamily
        yield gauge("turbo_queue_depth", "Requests waiting for the device.", status.waiting)
        yield gauge("turbo_queue_limit", "Requests that may wait (TURBO_MAX_QUEUE).", self._engine.max_queue)
        yield gauge("turbo_deadline_seconds", "Time a request may take (TURBO_DEADLINE_S).", self._engine.deadline_s)
        yield gauge(
            "turbo_device_call_running_seconds",
            "Time that the running device call has been running; 0 when none is.",
            status.running_s,
        )
        yield CounterMetricFamily("turbo_device_calls", "Device calls for pictures.", status.calls)
        yield CounterMetricFamily(
            "turbo_device_busy_seconds", "Time that the device was busy, the running call included.", status.busy_s
        )
        cache = self._registry.prompt_cache()
        lookups = CounterMetricFamily(
            "turbo_prompt_cache_lookups", "Prompts looked up in the cache of encoded ones.", labels=["outcome"]
        )
        lookups.add_metric(["hit"], cache.hits)
        lookups.add_metric(["miss"], cache.misses)
        yield lookups
        yield gauge("turbo_prompt_cache_bytes", "Memory that the encoded prompts take.", cache.size_bytes)
