"""Logging and metrics set-up."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.pipelines.base import CacheStatistics

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The service's Prometheus metrics, in a registry of their own, so that two apps in one process do not meet."""

    def __init__(self, *, queue_depth: Callable[[], int], prompt_cache: Callable[[], CacheStatistics]) -> None:
        """Make the metrics; `queue_depth` and `prompt_cache` are asked at each scrape."""
        self.registry = CollectorRegistry()
        self.requests = Counter("turbo_requests", "Requests answered.", ["route", "status"], registry=self.registry)
        self.rejected = Counter(
            "turbo_rejected", "Requests not answered with success, by error code.", ["reason"], registry=self.registry
        )
        self.queue_seconds = Histogram(
            "turbo_queue_seconds", "Seconds waited for the device.", ["mode"], buckets=_SECONDS, registry=self.registry
        )
        self.inference_seconds = Histogram(
            "turbo_inference_seconds", "Seconds on the device.", ["mode"], buckets=_SECONDS, registry=self.registry
        )
        self.batch_pictures = Histogram(
            "turbo_batch_pictures",
            "Pictures of the call that served a request.",
            ["mode"],
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.registry.register(_PromptCacheCollector(prompt_cache))
        depth = Gauge("turbo_queue_depth", "Requests waiting for the device.", registry=self.registry)
        depth.set_function(queue_depth)


class _PromptCacheCollector(Collector):
    """Reads what the cache of prompts counts by itself."""

    def __init__(self, statistics: Callable[[], CacheStatistics]) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        statistics = self._statistics()
        asked = CounterMetricFamily("turbo_prompt_cache", "Prompts looked up, by outcome.", labels=["outcome"])
        asked.add_metric(["hit"], statistics.hits)
        asked.add_metric(["miss"], statistics.misses)
        yield asked
        yield GaugeMetricFamily("turbo_prompt_cache_bytes", "Bytes of embeddings kept.", statistics.size_bytes)


def configure_logging(*, log_format: str, level: str) -> None:
    """Send every log line of the process, uvicorn's and the libraries' included, through structlog to stderr.

    Args:
        log_format: `json`, `console`, or `auto` for console on a terminal and json elsewhere.
        level: Least severe level that is logged.
    """
    if log_format == "auto":
        log_format = "console" if sys.stderr.isatty() else "json"
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(allow=()),
    ]
    last: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if log_format == "json"
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                exception_formatter=structlog.dev.plain_traceback,  # rich's shows variables, and prompts with them
            )
        ]
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("httpx", "httpx2", "httpcore", "urllib3", "asyncio", "PIL"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")  # read at import; both log past the root logger
    logging.captureWarnings(capture=True)
    logging.getLogger("uvicorn.error").addFilter(_is_no_start_traceback)


def _is_no_start_traceback(record: logging.LogRecord) -> bool:
    """Drop the traceback that Starlette hands uvicorn as the text of a failed start; the start logs its own line."""
    return not str(record.msg).startswith("Traceback (most recent call last)")


def get_logger(name: str) -> Any:
    """Return a structlog logger; a lazy proxy, so that it may be made before logging is configured."""
    return structlog.stdlib.get_logger(name)
