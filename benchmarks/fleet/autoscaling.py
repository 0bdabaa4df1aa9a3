"""Rules of autoscaling, and what each of them costs and spares in a simulated day."""

import itertools
import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import simpy

from benchmarks.fleet import ray_serve
from benchmarks.fleet.arrivals import Rate, arrivals, daily, steady, with_burst, with_flash_crowd
from benchmarks.fleet.balancers import HAPROXY, RAY, SERVICE, Balancer, LeastRequests, PowerOfTwo, Random, Rules
from benchmarks.fleet.cache import OK
from benchmarks.fleet.clients import IMPATIENT, PATIENT, SDK, Client
from benchmarks.fleet.devices import A100
from benchmarks.fleet.fleet import Fleet, Starts
from benchmarks.fleet.prometheus import Prometheus
from benchmarks.fleet.replica import Settings
from benchmarks.fleet.scaling import DEFAULT_DOWN, DEFAULT_UP, SYNC_S, Behavior, Hpa, Keda, Policy

DEVICE = A100
CAPACITY = DEVICE.max_batch / DEVICE.call_s[-1]
"""Pictures a second of one replica while requests wait."""

DAY_S = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """An autoscaler's configuration: a target for each signal, their window, and how fast replicas may change."""

    name: str
    targets: dict[str, float]
    window_s: float = 60.0
    up: Behavior = DEFAULT_UP
    down: Behavior = DEFAULT_DOWN
    scrape_s: float = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RayRule:
    """Ray Serve's autoscaler with a configuration."""

    config: ray_serve.Config

    @property
    def name(self) -> str:
        up, down = self.config.upscaling_factor, self.config.downscaling_factor
        factors = f"; factors {up:g} and {down:g}" if (up, down) != (1, 1) else ""
        delays = f"{self.config.upscale_delay_s:g} s up, {self.config.downscale_delay_s:g} s down"
        return f"Ray Serve, {self.config.target_ongoing_requests:g}; {delays}{factors}"


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The load, the starts and the clients that a rule is tried with."""

    rate: Rate
    lasts_s: float
    start_s: float = 60.0
    replicas: int = 1
    min_replicas: int = 1
    max_replicas: int = 40
    settings: Settings = field(default_factory=Settings)
    rules: Rules = HAPROXY
    balancer: Callable[[random.Random], Balancer] = lambda _: LeastRequests()
    client: Client = PATIENT
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The outcome of a rule.

    `seen` is the share of requests that ended without a picture, `raw` the share of attempts with 429.
    """

    requests: int
    p99_s: float
    seen: float
    raw: float
    devices: float
    """The mean number of devices."""
    cost: float
    """Seconds for which devices were held, relative to the least number that keeps up with each minute's requests."""
    turns_per_hour: float
    sizes: list[tuple[float, int]]
    """Each moment at which the number of wanted replicas changed, and the number from then on."""
    slowest_s: list[float]
    """The p99 of each ten minutes."""
    asked: list[float]
    """Requests a second in each minute."""


def day(*, peak: float = 3.0, trough: float = 0.3, bursts: int = 6, times: float = 2.0, seed: int = 7) -> Rate:
    """Return a day between `trough` and `peak` replicas' capacity, with bursts of ten minutes at random times."""
    rate, chance = daily(peak * CAPACITY, trough=trough * CAPACITY), np.random.default_rng(seed)
    for number in range(bursts):
        at_s = (number + chance.uniform(0, 0.9)) * DAY_S / bursts
        rate = with_burst(rate, at_s=at_s, lasts_s=600, times=times)
    return rate


UP = Behavior(0, (Policy("Percent", 50, 60), Policy("Pods", 2, 60)))
"""Two replicas more in a minute, or half as many again."""

CHOSEN = Rule(name="pictures asked for, 0.7", targets={"offered": 0.7 * CAPACITY}, up=UP)
_SLOWLY_UP, _SLOWLY_DOWN = Behavior(0, (Policy("Pods", 1, 120),)), Behavior(600, (Policy("Pods", 1, 300),))

RULES = (
    Rule(name="waiting requests, 4; slowly", targets={"queue": 4}, window_s=120, up=_SLOWLY_UP, down=_SLOWLY_DOWN),
    Rule(name="waiting requests, 4", targets={"queue": 4}, up=UP),
    Rule(name="requests in progress, 3", targets={"open": 3}, up=UP),
    Rule(name="busy share, 0.7", targets={"busy": 0.7}, up=UP),
    Rule(name="busy share with rejections, 0.8", targets={"offered busy": 0.8}, up=UP),
    Rule(name="pictures made, 0.7", targets={"pictures": 0.7 * CAPACITY}, up=UP),
    Rule(name="pictures asked for, 0.6", targets={"offered": 0.6 * CAPACITY}, up=UP),
    CHOSEN,
    Rule(name="pictures asked for, 0.8", targets={"offered": 0.8 * CAPACITY}, up=UP),
    Rule(name="pictures asked for, 0.7, and waiting, 4", targets={"offered": 0.7 * CAPACITY, "queue": 4}, up=UP),
    replace(CHOSEN, name="pictures asked for, 0.7; Kubernetes' default behavior", up=DEFAULT_UP),
    replace(CHOSEN, name="pictures asked for, 0.7; window 2 m", window_s=120),
)
"""The rules that are compared. The first is what the manifests had."""

_RAY = ray_serve.Config(target_ongoing_requests=DEVICE.max_batch, upscale_delay_s=0, downscale_delay_s=300)
RAY_CHOSEN = RayRule(config=replace(_RAY, upscaling_factor=0.1, downscaling_factor=0.3))
RAY_RULES = (
    RayRule(config=replace(_RAY, target_ongoing_requests=8, upscale_delay_s=30, downscale_delay_s=600)),
    RayRule(config=replace(_RAY, target_ongoing_requests=8, upscale_delay_s=10, upscaling_factor=0.3)),
    RayRule(config=replace(_RAY, upscale_delay_s=10, upscaling_factor=0.15)),
    RayRule(config=replace(RAY_CHOSEN.config, target_ongoing_requests=8, upscaling_factor=0.2)),
    RAY_CHOSEN,
)
"""Ray Serve's autoscaler. The first is what deploy/ray/serve.yaml had."""

ALL_RULES: tuple[Rule | RayRule, ...] = (*RULES, *RAY_RULES)

WORLD = World(rate=day(), lasts_s=DAY_S)
BEHIND_RAY = replace(WORLD, rules=RAY, balancer=PowerOfTwo)
"""The day behind Ray's proxy, which picks the shorter of two random queues."""

_MORNING = replace(WORLD, rate=lambda at: day()(at + 8 * 3600), lasts_s=4 * 3600.0, replicas=4)
_CROWD = with_flash_crowd(steady(0.5 * CAPACITY), at_s=1800, times=10, rise_s=60, half_life_s=300)

WORLDS = {
    "24 hours, `TURBO_MAX_QUEUE=1000`": replace(WORLD, settings=Settings(max_queue=1000)),
    "8 to 12 o'clock": _MORNING,
    "starts take 10 s": replace(_MORNING, start_s=10.0),
    "starts take 120 s": replace(_MORNING, start_s=120.0),
    "starts take 120 s, `TURBO_MAX_QUEUE=1000`": replace(_MORNING, start_s=120.0, settings=Settings(max_queue=1000)),
    "a Kubernetes Service: random choice, no retries": replace(_MORNING, rules=SERVICE, balancer=Random),
    "clients of openai-python: three attempts": replace(_MORNING, client=SDK),
    "clients that ignore `Retry-After`": replace(_MORNING, client=IMPATIENT),
    "10 times the load within a minute": replace(WORLD, rate=_CROWD, lasts_s=2 * 3600.0),
    "the same, `TURBO_MAX_QUEUE=1000`": replace(
        WORLD, rate=_CROWD, lasts_s=2 * 3600.0, settings=Settings(max_queue=1000)
    ),
    "the same, at least two replicas": replace(WORLD, rate=_CROWD, lasts_s=2 * 3600.0, replicas=2, min_replicas=2),
    "a request in 20 minutes, scaled to zero by KEDA": replace(
        WORLD, rate=steady(1 / 1200), replicas=0, min_replicas=0, client=replace(PATIENT, patience_s=600.0)
    ),
}
"""Other worlds in which the chosen rule is tried, by their names in the table."""


def run(rule: Rule | RayRule, world: World) -> Result:
    """Try a rule."""
    times = arrivals(world.rate, lasts_s=world.lasts_s, seed=world.seed)
    fleet = Fleet(
        [DEVICE],
        world.replicas,
        settings=world.settings,
        starts=Starts(process_s=world.start_s),
        balancer=world.balancer(random.Random(world.seed)),  # noqa: S311 - no secret
        rules=world.rules,
        client=world.client,
        seed=world.seed,
    )
    fleet.env.process(ray_serve.scale(fleet, rule.config) if isinstance(rule, RayRule) else _scale(fleet, rule, world))
    if not world.min_replicas:
        fleet.env.process(_wake(fleet))
    fleet.offer(times)
    fleet.run(world.lasts_s)
    held_s, sizes = fleet.device_s(), [*fleet.sizes]
    while len(fleet.outcomes) < len(times):
        fleet.run(fleet.env.now + 60)
    minutes = np.histogram(times, bins=int(world.lasts_s // 60), range=(0, world.lasts_s))[0]
    ideal_s = 60 * np.ceil(minutes / 60 / CAPACITY).sum()
    attempts, refused = (sum(getattr(one, name) for one in fleet.outcomes) for name in ("attempts", "refused"))
    answers = np.array([(one.at_s, one.latency_s, one.status == OK) for one in fleet.outcomes])
    return Result(
        requests=len(answers),
        p99_s=float(np.quantile(answers[:, 1], 0.99)),
        seen=1 - float(answers[:, 2].mean()),
        raw=refused / attempts,
        devices=held_s / world.lasts_s,
        cost=held_s / ideal_s,
        turns_per_hour=_turns(sizes, world.replicas) / (world.lasts_s / 3600),
        sizes=[(0.0, world.replicas), *sizes],
        slowest_s=_slowest(answers, world.lasts_s),
        asked=[float(count) / 60 for count in minutes],
    )


def _scale(fleet: Fleet, rule: Rule, world: World) -> Generator[simpy.Event, Any, None]:
    prometheus = Prometheus(fleet, rule.scrape_s)
    hpa = Hpa(
        targets=rule.targets,
        min_replicas=max(1, world.min_replicas),
        max_replicas=world.max_replicas,
        up=rule.up,
        down=rule.down,
    )
    while True:
        yield fleet.env.timeout(SYNC_S)
        if fleet.wanted:
            fleet.scale(hpa.sync(fleet.env.now, fleet.wanted, prometheus.metrics(rule.window_s)))


def _wake(fleet: Fleet) -> Generator[simpy.Event, Any, None]:
    """KEDA's part, with a trigger that counts the requests at the balancer within a minute."""
    keda, counts = Keda(), [0, 0, 0]
    while True:
        yield fleet.env.timeout(keda.polling_s)
        counts = [*counts[1:], fleet.sent]
        wanted = keda.poll(fleet.env.now, fleet.wanted, counts[-1] - counts[0])
        if (wanted == 0) != (fleet.wanted == 0):
            fleet.scale(wanted)


def _slowest(answers: npt.NDArray[np.float64], lasts_s: float) -> list[float]:
    """Return the p99 of each ten minutes, by the time of the request."""
    edges = np.arange(0, lasts_s, 600)
    parts = [answers[(answers[:, 0] >= edge) & (answers[:, 0] < edge + 600), 1] for edge in edges]
    return [float(np.quantile(part, 0.99)) if len(part) else 0.0 for part in parts]


def _turns(sizes: Sequence[tuple[float, int]], first: int) -> int:
    """Count how often the number of replicas turned from growing to shrinking, or back."""
    counts = [first, *(size for _, size in sizes)]
    ways = [after > before for before, after in itertools.pairwise(counts)]
    return sum(one != other for one, other in itertools.pairwise(ways))


def try_rule(name: str) -> tuple[Result, float]:
    """Return what a rule did in the day, and its turns in an hour at a constant load near one replica's capacity.

    The turns are the most of those at 0.9, 1 and 1.1 of the capacity.
    """
    (rule,) = (rule for rule in ALL_RULES if rule.name == name)
    world = BEHIND_RAY if isinstance(rule, RayRule) else WORLD
    steadily = [replace(world, rate=steady(share * CAPACITY), lasts_s=2 * 3600.0) for share in (0.9, 1.0, 1.1)]
    return run(rule, world), max(run(rule, one).turns_per_hour for one in steadily)


def try_world(name: str) -> Result:
    """Return what the chosen rule did in another world."""
    return run(CHOSEN, WORLDS[name])
