"""Follows one request, for its trace, its metrics and its log line."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import structlog

from app.inference.generation import Generated, Observer, Stage
from app.observability.metrics import Metrics
from app.observability.traces import Tracing

_log = structlog.stdlib.get_logger("app.access")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observability:
    """The service's metrics and traces, and whether prompts are logged."""

    metrics: Metrics
    tracing: Tracing
    log_prompts: bool


class RequestObserver(Observer):
    """Collects the facts of one request, given as its ASGI scope, and reports them at the end.

    A `quiet` request has no trace, and no info line unless it fails. Handlers may add to `facts`, the fields of the log
    line. `headers` and `ids` name the trace in the answer's headers and in other log lines of the request.
    """

    def __init__(self, observability: Observability, scope: Mapping[str, Any], *, quiet: bool) -> None:
        trace = None if quiet else observability.tracing.begin(scope)
        self.facts: dict[str, Any] = {}
        self.headers: Mapping[str, str] = trace.headers if trace else {}
        self.ids: Mapping[str, str] = trace.ids if trace else {}
        self.error_code: str | None = None
        self._metrics = observability.metrics
        self._trace = trace
        self._quiet = quiet
        self._log_prompts = observability.log_prompts
        self._started = time.monotonic()
        self._metrics.requests_in_progress.inc(not quiet)

    def on_stage(self, stage: Stage) -> None:
        if self._trace:
            self._trace.add(stage)

    def on_result(self, result: Generated) -> None:
        used, timings = result.used, result.timings
        self._metrics.record_pictures(result)
        self.facts.update(
            mode=used.mode,
            seed=result.seeds[0],
            steps=used.effective_steps,
            size=f"{used.width}x{used.height}",
            batch=result.batch_pictures,
            **timings.model_dump(),
        )
        if self._log_prompts:
            self.facts["prompt"] = used.prompt

    def on_error(self, code: str) -> None:
        """Count an error answer by its machine code."""
        self._metrics.errors.labels(code).inc()
        self.error_code = code

    def end(self, *, method: str, path: str, route: str | None, status: int, request_id: str) -> None:
        """Count, log and end the request. `path` is percent-encoded; `route` is a template, or None without a match."""
        duration_s = time.monotonic() - self._started
        self._metrics.requests_in_progress.dec(not self._quiet)
        self._metrics.record_request(method=method, route=route or "unmatched", status=status, duration_s=duration_s)
        level = logging.DEBUG if self._quiet and status < HTTPStatus.BAD_REQUEST else logging.INFO
        _log.log(
            level,
            "request",
            request_id=request_id,
            method=method,
            path=path,
            status=status,
            duration_s=round(duration_s, 4),
            **self.facts,
            **self.ids,
        )
        if self._trace:
            self._trace.end(
                route=route, status=status, error_code=self.error_code, request_id=request_id, facts=self.facts
            )
