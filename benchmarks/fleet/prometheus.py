"""Prometheus' view of the fleet: scrapes at intervals, and rates over them, so that the autoscaler sees the past."""

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import simpy

from benchmarks.fleet.fleet import Fleet
from benchmarks.fleet.replica import Replica
from benchmarks.fleet.scaling import External, PerPod

_KEPT_S = 600.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One scrape of a replica. `queue` and `open` are gauges, the others are counters."""

    at: float
    queue: float
    open: float
    busy_s: float
    pictures: float
    refused: float


@dataclass(eq=False)
class Prometheus:
    """Scrapes the ready replicas each `interval_s`, each at a moment of its own within the interval."""

    fleet: Fleet
    interval_s: float = 15.0
    series: dict[Replica, deque[Sample]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fleet.env.process(self._watch())

    def _watch(self) -> Generator[simpy.Event, Any, None]:
        """Begin to scrape each replica that is ready."""
        env = self.fleet.env
        while True:
            for replica in self.fleet.ready:
                if replica not in self.series:
                    self.series[replica] = deque()
                    env.process(self._scrape(replica, self.fleet.chance.uniform(0, self.interval_s)))
            yield env.timeout(1.0)

    def _scrape(self, replica: Replica, phase_s: float) -> Generator[simpy.Event, Any, None]:
        env, samples = self.fleet.env, self.series[replica]
        yield env.timeout(phase_s)
        while replica.died > env.now:
            samples.append(
                Sample(env.now, replica.waiting, replica.open, replica.busy_s, replica.pictures, replica.refused)
            )
            while samples[0].at < env.now - _KEPT_S:
                samples.popleft()
            yield env.timeout(self.interval_s)
        yield env.timeout(_KEPT_S)
        del self.series[replica]

    def rate(self, value: Callable[[Sample], float], window_s: float) -> float | None:
        """Return `sum(rate(...[window]))`; None without two samples of any replica in the window.

        As Prometheus does, a slope is extended to the window's ends, but by at most half an interval beyond the samples
        where they cover only a part of it.
        """
        now, total, known = self.fleet.env.now, 0.0, False
        for samples in self.series.values():
            inside = [sample for sample in samples if sample.at > now - window_s]
            if len(inside) < 2:  # noqa: PLR2004 - a slope needs two points
                continue
            known = True
            first, last = inside[0], inside[-1]
            covered_s = last.at - first.at
            usual_s = covered_s / (len(inside) - 1)
            gaps_s = (first.at - (now - window_s), now - last.at)
            extended_s = covered_s + sum(gap if gap < 1.1 * usual_s else usual_s / 2 for gap in gaps_s)
            total += (value(last) - value(first)) * extended_s / covered_s / window_s
        return total if known else None

    def per_pod(self, value: Callable[[Sample], float], window_s: float) -> PerPod:
        """Return `avg_over_time(...[window])` of each replica, and how many have no samples."""
        now, values, missing = self.fleet.env.now, [], 0
        for replica in self.fleet.present:
            inside = [value(one) for one in self.series.get(replica, ()) if one.at > now - window_s]
            if inside:
                values.append(sum(inside) / len(inside))
            else:
                missing += 1
        return PerPod(values, missing)

    def metrics(self, window_s: float) -> dict[str, PerPod | External]:
        """Return the signals that an autoscaler can use; `SIGNALS` describes them."""
        queues, opened = (self.per_pod(value, window_s) for value in (lambda one: one.queue, lambda one: one.open))
        busy = self.rate(lambda one: one.busy_s, window_s)
        served = self.rate(lambda one: one.pictures, window_s)
        refused = self.rate(lambda one: one.refused, window_s)
        asked = None if served is None or refused is None else served + refused
        return {
            "queue": queues,
            "open": External(sum(opened.values) if opened.values else None),
            "busy": External(busy),
            "offered busy": External(busy * asked / served if busy and asked and served else busy),
            "pictures": External(served),
            "offered": External(asked),
        }


SIGNALS = {
    "queue": "avg_over_time(turbo_queue_depth[1m])",
    "open": "sum(avg_over_time(turbo_requests_in_progress[1m]))",
    "busy": "sum(rate(turbo_device_busy_seconds_total[1m]))",
    "pictures": "sum(rate(turbo_pictures_total[1m]))",
    "offered": 'sum(rate(turbo_pictures_total[1m])) + sum(rate(turbo_errors_total{code="queue_full"}[1m]))',
    "offered busy": "busy * offered / pictures",
}
"""The signals in PromQL, here in a window of a minute. `queue` is a value of each pod, the others are one for all."""
