"""Ray Serve's autoscaler: the requests that its proxy reports, and the number of replicas that its controller wants.

Source: ray.serve 2.60. `_private/router.py` samples and reports, `_private/autoscaling_state.py` takes the mean, and
`autoscaling_policy.py` has the factors and delays. Tests compare both with Ray's own.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import simpy

from benchmarks.fleet.fleet import Fleet
from benchmarks.fleet.replica import Replica

LOOP_S = 1.0
"""The controller's loop. Ray's takes 0.1 s or more; reports come each 10 s."""

_SAMPLES_IN_PERIOD = 5
_ROUNDING_S = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Ray's `AutoscalingConfig`, with Ray's names and defaults, except for `max_replicas` (1)."""

    target_ongoing_requests: float = 2.0
    min_replicas: int = 1
    max_replicas: int = 40
    metrics_interval_s: float = 10.0
    look_back_period_s: float = 30.0
    upscaling_factor: float = 1.0
    downscaling_factor: float = 1.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0


@dataclass(eq=False)
class Autoscaler:
    """The controller's policy for one deployment, with at least one replica."""

    config: Config
    _since: tuple[bool, float] | None = field(default=None, init=False)
    """Whether more replicas are desired, and since when; None if the number is right."""

    def decide(self, now: float, wanted: int, running: int, ongoing: float) -> int:
        """Return the new number of replicas. `ongoing` is the mean number of requests, waiting or in a call."""
        if not running:
            return wanted
        desired = self._desired(running, ongoing)
        if desired == wanted:
            self._since = None
            return wanted
        more = desired > wanted
        if self._since is None or self._since[0] != more:
            self._since = (more, now)
        delay_s = self.config.upscale_delay_s if more else self.config.downscale_delay_s
        if now - self._since[1] + _ROUNDING_S < delay_s:
            return wanted
        self._since = None
        return max(self.config.min_replicas, min(self.config.max_replicas, desired))

    def _desired(self, running: int, ongoing: float) -> int:
        ideal = ongoing / self.config.target_ongoing_requests
        factor = self.config.upscaling_factor if ideal > running else self.config.downscaling_factor
        desired = math.ceil(running + factor * (ideal - running))
        if math.ceil(ideal) < running == desired:  # the factor would keep a replica too many
            desired -= 1
        return max(1, desired)


Samples = list[tuple[float, int]]
"""Moments, and the number of one replica's requests then."""


def mean(all_samples: Sequence[Samples], now: float) -> float:
    """Return the mean of the sum over the replicas.

    Each sample counts until the replica's next one, the last one until now. The window begins when all of the replicas
    have a sample, so a replica that has just begun shortens it.
    """
    if not all_samples:
        return 0.0
    begins = max(samples[0][0] for samples in all_samples)
    if begins == now:
        return float(sum(samples[-1][1] for samples in all_samples))
    total = sum(
        number * max(0.0, ends - max(at, begins))
        for samples in all_samples
        for (at, number), (ends, _) in pairwise([*samples, (now, 0)])
    )
    return total / (now - begins)


@dataclass(eq=False)
class Proxy:
    """One proxy's reports: samples of the requests that each replica was sent and has not answered."""

    fleet: Fleet
    config: Config
    _samples: dict[Replica, Samples] = field(default_factory=dict, init=False)
    _reported: dict[Replica, Samples] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.fleet.env.process(self._sample())
        self.fleet.env.process(self._report())

    def ongoing(self, running: Sequence[Replica]) -> float:
        """Return the mean of the sum over these replicas, as of the last report."""
        return mean([self._reported[one] for one in running if one in self._reported], self.fleet.env.now)

    def _sample(self) -> Generator[simpy.Event, Any, None]:
        env, config = self.fleet.env, self.config
        while True:
            oldest = env.now - config.look_back_period_s
            self._samples = {
                replica: [one for one in self._samples.get(replica, ()) if one[0] >= oldest] + [(env.now, replica.open)]
                for replica in self.fleet.servers
            }
            yield env.timeout(min(config.look_back_period_s / _SAMPLES_IN_PERIOD, config.metrics_interval_s))

    def _report(self) -> Generator[simpy.Event, Any, None]:
        env = self.fleet.env
        while True:
            oldest = env.now - self.config.look_back_period_s
            self._reported = {
                replica: [one for one in self._samples.get(replica, ()) if one[0] >= oldest]
                or [(env.now, replica.open)]
                for replica in self.fleet.servers
            }
            yield env.timeout(self.config.metrics_interval_s)


def scale(fleet: Fleet, config: Config) -> Generator[simpy.Event, Any, None]:
    """Scale the fleet as Ray does. A process for the environment."""
    proxy, autoscaler = Proxy(fleet, config), Autoscaler(config)
    while True:
        yield fleet.env.timeout(LOOP_S)
        running = fleet.ready
        fleet.scale(autoscaler.decide(fleet.env.now, fleet.wanted, len(running), proxy.ongoing(running)))
