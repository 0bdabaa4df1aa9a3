"""Failures of a fleet: what clients see, in the simulation."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from benchmarks.fleet.arrivals import arrivals, steady
from benchmarks.fleet.autoscaling import CAPACITY, DEVICE
from benchmarks.fleet.cache import OK, Cache, draw, zipf
from benchmarks.fleet.clients import PATIENT
from benchmarks.fleet.fleet import Fleet, Outcome, Starts
from benchmarks.fleet.replica import FULL, after

REPLICAS, ZONES, BUSY = 6, 3, 0.6
"""Six replicas in three zones, which get three fifths of the pictures that they can make."""

AT_S, LASTS_S = 300.0, 1800.0
START_S = 60.0
_SLOW_S = 5.0
URLS, EXPONENT, HIT_SHARE = 100_000, 1.0, 0.3
"""The cache has room for 30 % of the URLs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What clients saw from the failure on, until it was over: shares of requests, and seconds.

    `normal_s` is the time from the failure until the last minute that was worse than usual: an error, or a p99 above
    twice the p99 from before.
    """

    name: str
    requests: int
    first: float
    later: float
    full: float
    errors: float
    p99_s: float
    normal_s: float


def _fleet(starts: Starts | None = None) -> Fleet:
    return Fleet([DEVICE], REPLICAS, zones=ZONES, client=PATIENT, starts=starts or Starts(process_s=START_S))


def _zone(fleet: Fleet) -> None:
    fleet.kill([one for one in fleet.ready if one.zone == 0], restart=False)


def _half(fleet: Fleet) -> None:
    fleet.kill(fleet.ready[: REPLICAS // 2])


def _half_and_hub(fleet: Fleet) -> None:
    fleet.hub = False
    _half(fleet)
    after(fleet.env, 600, lambda: setattr(fleet, "hub", True))


CASES: dict[str, tuple[Callable[[Fleet], None], Starts]] = {
    "one of three zones is lost": (_zone, Starts(process_s=START_S)),
    "half of the replicas die": (_half, Starts(process_s=START_S)),
    "half of the replicas die, and the hub cannot be reached for 10 minutes; weights on a volume": (
        _half_and_hub,
        Starts(process_s=START_S),
    ),
    "the same, weights from the hub": (_half_and_hub, Starts(process_s=START_S, needs_hub=True)),
}


def cases() -> Iterator[Seen]:
    """Simulate each failure."""
    for name, (fail, starts) in CASES.items():
        fleet = _fleet(starts)
        fleet.offer(arrivals(steady(BUSY * REPLICAS * CAPACITY), lasts_s=LASTS_S, seed=1))
        after(fleet.env, AT_S, partial(fail, fleet))
        fleet.run()
        yield seen(name, fleet.outcomes, at_s=AT_S)
    yield from cold_cache()


def cold_cache() -> Iterator[Seen]:
    """Simulate a cache that loses its pictures, before a fleet that is large enough for its misses, and for all."""
    shares = zipf(URLS, exponent=EXPONENT)
    for load in (4.0, 10.0):
        fleet = _fleet()
        cache = fleet.cache = Cache(
            partial(getattr, fleet.env, "now"),
            max_bytes=int(URLS * HIT_SHARE),
            answer_bytes=1,
            ttl_s=30 * 24 * 3600.0,
            stale_on_error=True,
        )
        times = arrivals(steady(load * BUSY * REPLICAS * CAPACITY), lasts_s=LASTS_S, seed=1)
        urls = draw(shares, len(times), seed=1)
        _warm(cache, draw(shares, 2 * URLS, seed=2))
        fleet.offer(times, urls=urls)
        after(fleet.env, AT_S, cache.clear)
        fleet.run()
        yield seen(f"the cache is lost; {load:g} times the requests of the rows above", fleet.outcomes, at_s=AT_S)


def _warm(cache: Cache, urls: npt.NDArray[np.int64]) -> None:
    for url in urls.tolist():
        cache.get(url, lambda *_: None, lambda answered: answered(OK, 0))


def seen(name: str, outcomes: list[Outcome], *, at_s: float) -> Seen:
    """Return what clients saw in the ten minutes after `at_s`, or for longer if the service was not normal then."""
    rows = np.array([(one.at_s, one.latency_s, one.status, one.attempts) for one in outcomes])
    at, latency_s, status, attempts = rows[np.argsort(rows[:, 0])].T
    usual_s = np.quantile(latency_s[at < at_s], 0.99)
    normal_s = 0.0
    for second in np.arange(at_s, at.max(), 10.0):
        inside = (at >= second) & (at < second + 10)
        if inside.any() and ((status[inside] != OK).any() or np.quantile(latency_s[inside], 0.99) > 2 * usual_s):
            normal_s = second + 10 - at_s
    after_it = (at >= at_s) & (at < at_s + max(600.0, normal_s))
    latency_s, status, attempts = latency_s[after_it], status[after_it], attempts[after_it]
    served = status == OK
    return Seen(
        name=name,
        requests=len(status),
        first=float((served & (attempts == 1)).mean()),
        later=float((served & (attempts > 1)).mean()),
        full=float((status == FULL).mean()),
        errors=float((~served & (status != FULL)).mean()),
        p99_s=float(np.quantile(latency_s, 0.99)),
        normal_s=normal_s,
    )


HEAD = (
    "| failure | answered at the first attempt | later | 429 in the end | 5xx in the end | p99 | normal after |\n"
    "| --- | --- | --- | --- | --- | --- | --- |"
)


def row(one: Seen, *, what: str | None = None) -> str:
    """Return a line of the table."""
    return (
        f"| {what or one.name} | {one.first:.2%} | {one.later:.2%} | {one.full:.2%} | {one.errors:.2%} "
        f"| {one.p99_s:.1f} s | {one.normal_s:.0f} s |"
    )


def table() -> Iterator[str]:
    """Yield the lines of the table."""
    yield HEAD
    yield from map(row, cases())
