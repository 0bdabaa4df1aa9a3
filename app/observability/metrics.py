"""Prometheus metrics."""

from collections.abc import Iterator
from functools import partial
from typing import get_args

import prometheus_client
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from app import __version__
from app.errors import StartError, TurboError
from app.inference.engine import Engine, Status
from app.inference.generation import Generated
from app.pipelines.base import CacheStatistics, Mode

SECONDS_BUCKETS = (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
"""From a step on a fast accelerator to twice the default deadline of 60 s, with bounds at 60 s and 30 s."""

PICTURES_BUCKETS = (1, 2, 4, 8, 16, 32, 64)

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Metrics(Collector):
    """The service's metrics, in a registry of their own, so that tests may have several apps in one process.

    The engine's state is read at each scrape; other values are counted as they change. Series with known labels start
    at 0, so that Prometheus sees the first error of a kind as a rise.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # Prometheus does not use the library's `_created` series, one for each other series.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call] # the library has no type for it
        self.registry = prometheus_client.CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry, buckets=SECONDS_BUCKETS)
        self.requests = counter("turbo_requests", "Requests answered.", ["method", "route", "status"])
        self.request_seconds = histogram(
            "turbo_request_duration_seconds",
            "Time from a request's header to the end of its answer.",
            ["method", "route", "status_class"],
        )
        self.requests_in_progress = Gauge(
            "turbo_requests_in_progress",
            "Requests that are arriving, waiting, served or being answered; without health checks and scrapes.",
            registry=self.registry,
        )
        self.errors = counter("turbo_errors", "Answers that are no success, by the code in their body.", ["code"])
        self.pictures = counter("turbo_pictures", "Pictures made for answers.", ["mode"])
        self.decode_seconds = histogram("turbo_decode_seconds", "Time that a served request's upload took to decode.")
        self.queue_seconds = histogram(
            "turbo_queue_seconds", "Time that a served request waited for the device.", ["mode"]
        )
        self.inference_seconds = histogram(
            "turbo_inference_seconds", "Time of the device call that served a request.", ["mode"]
        )
        self.encode_seconds = histogram(
            "turbo_encode_seconds", "Time that a request's pictures took to encode.", ["media_type"]
        )
        self.batch_pictures = histogram(
            "turbo_batch_pictures",
            "Pictures of the device call that served a request.",
            ["mode"],
            buckets=PICTURES_BUCKETS,
        )
        for mode in Mode:
            for metric in (self.pictures, self.queue_seconds, self.inference_seconds, self.batch_pictures):
                metric.labels(mode)
        for code in _codes(TurboError):
            self.errors.labels(code)
        self.registry.register(self)
        prometheus_client.ProcessCollector(registry=self.registry)
        prometheus_client.GCCollector(registry=self.registry)

    def record_request(self, *, method: str, route: str, status: int, duration_s: float) -> None:
        """Count a request. `route` is a template, or one word for all paths without one."""
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

    def collect(self) -> Iterator[Metric]:
        """Read the state of the engine. Never waits for the device."""
        engine, registry = self._engine, self._engine.registry
        if registry.warm:
            loaded = registry.loaded
            yield InfoMetricFamily(
                "turbo",
                "What runs: the service's version, the model, its device and number format; the VAE, if it is not the "
                "model's own.",
                {
                    "version": __version__,
                    "model": loaded.model,
                    "vae": loaded.vae or "",
                    "device": loaded.device_name,
                    "dtype": loaded.dtype,
                },
            )
        words = GaugeMetricFamily("turbo_status", "1 for what the service is, 0 for what it is not.", labels=["status"])
        status = engine.status
        for word in get_args(Status):
            words.add_metric([word], float(word == status))
        yield words
        gauge = GaugeMetricFamily
        yield gauge("turbo_queue_depth", "Requests waiting for the device.", engine.admission.waiting)
        yield gauge("turbo_queue_limit", "Requests that may wait (TURBO_MAX_QUEUE).", engine.admission.max_queue)
        yield gauge(
            "turbo_deadline_seconds",
            "Time a request may take that is no more work than the warm-up's picture (TURBO_DEADLINE_S).",
            engine.admission.deadline_s,
        )
        yield gauge(
            "turbo_device_call_expected_seconds",
            "Time that the running device call is expected to take; 0 when none is.",
            registry.lock.serving_s,
        )
        yield gauge(
            "turbo_device_call_running_seconds",
            "Time that the running device call has been running; 0 when none is.",
            registry.lock.running_s,
        )
        yield CounterMetricFamily("turbo_device_calls", "Device calls for pictures.", engine.calls)
        yield CounterMetricFamily(
            "turbo_device_busy_seconds",
            "Time that the device was busy, the running call included.",
            registry.lock.busy_s,
        )
        cache = registry.loaded.prompt_cache() if registry.warm else CacheStatistics()
        lookups = CounterMetricFamily(
            "turbo_prompt_cache_lookups", "Prompts looked up in the cache of encoded ones.", labels=["outcome"]
        )
        lookups.add_metric(["hit"], cache.hits)
        lookups.add_metric(["miss"], cache.misses)
        yield lookups
        yield gauge("turbo_prompt_cache_bytes", "Memory that the encoded prompts take.", cache.size_bytes)


def _codes(kind: type[TurboError]) -> Iterator[str]:
    """Yield the codes of an error class and its subclasses, except errors at start."""
    if not issubclass(kind, StartError):
        yield kind.code
        for subclass in kind.__subclasses__():
            yield from _codes(subclass)
