"""The measurements: raw figures, and the reported medians."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from benchmarks.support.pictures import Prompts


@dataclass(frozen=True, slots=True)
class Scenario:
    """One closed loop."""

    key: str
    title: str
    side: int
    prompts: Prompts
    clients: int
    pictures: int
    """Requests for each server and round."""


class Key(StrEnum):
    """The scenarios' keys."""

    SMALL_ONE = "128-1"
    SMALL_EIGHT = "128-8"
    LARGE_KEPT = "512-1-kept"
    LARGE_FRESH = "512-1-fresh"
    LARGE_EIGHT = "512-8"
    OPEN = "128-open"


SCENARIOS = (
    Scenario(Key.SMALL_ONE, "128 px, one client, fresh prompts", 128, Prompts.FRESH, 1, 24),
    Scenario(Key.SMALL_EIGHT, "128 px, eight clients, fresh prompts", 128, Prompts.FRESH, 8, 48),
    Scenario(Key.LARGE_KEPT, "512 px, one client, one prompt", 512, Prompts.KEPT, 1, 8),
    Scenario(Key.LARGE_FRESH, "512 px, one client, fresh prompts", 512, Prompts.FRESH, 1, 8),
    Scenario(Key.LARGE_EIGHT, "512 px, eight clients, fresh prompts", 512, Prompts.FRESH, 8, 16),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One round of one scenario on one server."""

    server: str
    scenario: str
    round: int
    images: int
    """The number of right pictures; CPU time per image is divided by it."""

    cpu_s: float
    wall_s: float
    others_cpu_s: float
    """CPU time of all other processes on the machine meanwhile, without the load generator."""

    latencies_s: list[float]
    exact: int = 0
    near: int = 0
    bad: list[str]
    per_second: float | None = None
    """The rate of arrivals in an open loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start of one server. The server `bare` is the pipeline alone."""

    server: str
    ready_s: float
    first_picture_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """Measured while no other server runs: memory under load, and the effect of concurrent requests on a picture."""

    server: str
    peak_pss_bytes: int
    processes: int
    compared: int
    identical: int
    """Answers to concurrent requests that are byte-identical to the answer to the same request alone."""

    largest_difference: int
    """The largest difference in any channel, 0 to 255."""

    bad: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reactions:
    """An event loop under load, in seconds: the latency of probes, and the loop's lags."""

    server: str
    side: int
    probes: int
    failures: int
    p99_s: float
    max_s: float
    raw_lag_p99_s: float
    raw_lag_max_s: float
    net_lag_p99_s: float
    net_lag_max_s: float


@dataclass(kw_only=True)
class Results:
    """All results of one run."""

    date: str
    machine: dict[str, str]
    options: dict[str, str]
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)
    starts: list[Start] = field(default_factory=list)
    alone: list[Alone] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    reactions: list[Reactions] = field(default_factory=list)

    def of(self, server: str, scenario: str) -> list[Measurement]:
        """Return the rounds of one scenario on one server that have right pictures."""
        return [m for m in self.measurements if (m.server, m.scenario) == (server, scenario) and m.images]

    def cpu_s(self, server: str, scenario: str) -> float | None:
        """Return the median CPU time per image."""
        return _median([m.cpu_s / m.images for m in self.of(server, scenario)])

    def cpu_ratio(
        self, one: str | None, other: str | None, scenario: str, *, other_scenario: str | None = None
    ) -> float | None:
        """Return the median of each round's ratio of CPU time per image: one server's to another's, or to its own.

        Servers and scenarios take turns in each round, so other load on the machine affects both.
        """
        if one is None or other is None:
            return None
        others = {m.round: m.cpu_s / m.images for m in self.of(other, other_scenario or scenario)}
        return _median([m.cpu_s / m.images / others[m.round] for m in self.of(one, scenario) if others.get(m.round)])

    def cpu_range_s(self, server: str, scenario: str) -> tuple[float, float] | None:
        """Return the lowest and the highest CPU time per image of all rounds."""
        costs = [m.cpu_s / m.images for m in self.of(server, scenario)]
        return (min(costs), max(costs)) if costs else None

    def images_per_s(self, server: str, scenario: str) -> float | None:
        """Return the median of images per second of wall-clock time."""
        return _median([m.images / m.wall_s for m in self.of(server, scenario)])

    def latency_s(self, server: str, scenario: str, share: float) -> float | None:
        """Return a quantile of the latencies in all rounds together."""
        latencies = [latency for m in self.of(server, scenario) for latency in m.latencies_s]
        return quantile(latencies, share) if latencies else None

    def others_share(self) -> float | None:
        """Return the share of the machine's cores that other processes used during all measurements."""
        available = sum(m.wall_s for m in self.measurements) * int(self.machine["cores"])
        return sum(m.others_cpu_s for m in self.measurements) / available if available else None

    def ready_s(self, server: str) -> float | None:
        """Return the median time until ready."""
        return _median([start.ready_s for start in self.starts if start.server == server])

    def start_cpu_s(self, server: str) -> float | None:
        """Return the median CPU time of the starts."""
        return _median([start.cpu_s for start in self.starts if start.server == server])

    def memory_bytes(self, server: str) -> int | None:
        """Return the peak memory under load."""
        return next((alone.peak_pss_bytes for alone in self.alone if alone.server == server), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The largest memory of one process tree in one round of the full scope."""

    server: str
    under_load_bytes: int
    """Proportional set size while it answers requests."""

    since_start_bytes: int
    """Resident size, the start included."""


@dataclass(kw_only=True)
class FullResults(Results):
    """All results of one run of the full scope."""

    peaks: list[Peak] = field(default_factory=list)
    weights_bytes: int | None = None
    """The model's parameters in the service's number format."""

    def memory_bytes(self, server: str) -> int | None:
        return max((peak.under_load_bytes for peak in self.peaks if peak.server == server), default=None)

    def memory_since_start_bytes(self, server: str) -> int | None:
        """Return the peak memory, the start included."""
        return max((peak.since_start_bytes for peak in self.peaks if peak.server == server), default=None)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values do not exceed."""
    return sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None
