"""The fleet: clients, a cache, a balancer, replicas that start and end, and the autoscaler's view of them."""

import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import simpy

from benchmarks.fleet.balancers import HAPROXY, Balancer, LeastRequests, Rules, Server
from benchmarks.fleet.cache import OK, Cache
from benchmarks.fleet.clients import ONCE, Client
from benchmarks.fleet.devices import Kind
from benchmarks.fleet.replica import FULL, GONE, NOT_READY, Place, Replica, Settings, State, after

_NO_SERVER_RETRY_S, _BROKEN_RETRY_S = 5, 1
"""`Retry-After` of HAProxy's own 503 and 502 (deploy/haproxy/haproxy.cfg)."""

_PRE_STOP_S, _ENDPOINTS_S = 3.0, 2.0
"""The sleep of `preStop` (deploy/kubernetes/base/deployment.yaml). A pod's end reaches the proxies at the latest after
`_ENDPOINTS_S`, which is assumed."""

_RETRIED = (FULL, GONE, NOT_READY)
_CRASH_BACKOFF_S, _MOST_CRASH_BACKOFF_S = 10.0, 300.0
"""Kubernetes' delays before it restarts a container that failed: doubled each time
(https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#restart-policy)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a client got in the end. `refused` counts the answers 429 that it got on the way."""

    at_s: float
    status: int
    latency_s: float
    attempts: int
    refused: int


@dataclass(frozen=True, kw_only=True)
class Starts:
    """Seconds from the wish for a replica until it is ready: for a new node, and for its process."""

    process_s: float = 30.0
    node_s: float = 0.0
    needs_hub: bool = False
    """Whether a start downloads the weights."""


@dataclass(eq=False)
class Fleet:
    """A fleet, from the clients' requests to the devices. Times are simulated seconds.

    `kinds` are the kinds of requests; the first is the warm-up's. `replicas` are ready at the start.
    """

    kinds: Sequence[Kind]
    replicas: int
    settings: Settings = field(default_factory=Settings)
    starts: Starts = field(default_factory=Starts)
    balancer: Balancer = field(default_factory=LeastRequests)
    rules: Rules = HAPROXY
    client: Client = ONCE
    answer_s: float = 0.0
    zones: int = 1
    seed: int = 0
    env: simpy.Environment = field(default_factory=simpy.Environment)
    cache: Cache | None = None

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)  # noqa: S311 - no secret
        self.outcomes: list[Outcome] = []
        self.all: list[Replica] = []
        """All replicas that ever were."""
        self.servers: list[Replica] = []
        """Those that the balancer sends requests to."""
        self.hub = True
        """Whether the hub of the weights can be reached."""
        self.wanted = self.replicas
        self.sizes: list[tuple[float, int]] = []
        """The number of wanted replicas after each change."""
        self.sent = 0
        """Requests that reached the balancer."""
        self._changes = 0
        for _ in range(self.replicas):
            replica = self._add()
            replica.start()
            self._list(replica)

    # The clients.

    def offer(self, times: npt.NDArray[np.float64], *, urls: npt.NDArray[np.int64] | None = None) -> None:
        """Let clients send requests at these moments, for these URLs if there is a cache."""
        kinds = [self.kinds[0]] * len(times) if len(self.kinds) == 1 else self.chance.choices(self.kinds, k=len(times))
        urls_or_none = [None] * len(times) if urls is None else urls.tolist()
        self.env.process(self._arrive(times.tolist(), kinds, urls_or_none))

    def run(self, until_s: float | None = None) -> None:
        """Simulate until this moment, or until nothing happens any more."""
        self.env.run(until_s)

    def _arrive(
        self, times: Sequence[float], kinds: Sequence[Kind], urls: Sequence[int | None]
    ) -> Generator[simpy.Event, Any, None]:
        env = self.env
        for at, kind, url in zip(times, kinds, urls, strict=True):
            yield env.timeout(at - env.now)
            _Request(self, kind, url).send()

    # The balancer.

    def send(self, kind: Kind, answered: Callable[[int, int], None]) -> None:
        """Send a request through the balancer."""
        self.sent += 1
        _Attempt(self, kind, answered).send(None)

    def changed(self, server: Server, by: int) -> None:
        """Count the open requests of a server."""
        self._changes += 1
        server.open += by
        server.changed = self._changes

    def _list(self, replica: Replica) -> None:
        replica.listed = True
        self.servers.append(replica)

    def _unlist(self, replica: Replica) -> None:
        if replica.listed:
            replica.listed = False
            self.servers.remove(replica)

    def _checks_s(self, needed: int) -> float:
        """Return the time until `needed` checks in a row have seen a change that happens now."""
        return self.chance.uniform(0, self.rules.inter_s) + (needed - 1) * self.rules.fastinter_s

    # The replicas.

    @property
    def present(self) -> list[Replica]:
        """Replicas that start or serve, and are not to end."""
        return [one for one in self.all if one.state in (State.STARTING, State.READY) and not one.leaving]

    @property
    def ready(self) -> list[Replica]:
        return [one for one in self.all if one.state is State.READY and not one.leaving]

    def scale(self, wanted: int) -> None:
        """Add replicas, or drain some: first those that still start, then the newest ones."""
        if wanted != self.wanted:
            self.sizes.append((self.env.now, wanted))
        self.wanted = wanted
        present = self.present
        for _ in range(wanted - len(present)):
            self._begin(self._add(), self.starts.node_s)
        leaving = sorted(present, key=lambda one: (one.state is State.READY, -one.born))[
            : max(0, len(present) - wanted)
        ]
        for replica in leaving:
            self.drain(replica)

    def drain(self, replica: Replica) -> None:
        """Stop a replica as Kubernetes does: the balancer learns of it, and SIGTERM comes after the `preStop` hook."""
        replica.leaving = True
        if replica.state is State.STARTING:
            replica.die()
        else:
            after(self.env, self.chance.uniform(0, _ENDPOINTS_S), partial(self._unlist, replica))
            after(self.env, _PRE_STOP_S, replica.drain)

    def kill(self, replicas: Sequence[Replica], *, restart: bool = True, device: bool = False) -> None:
        """End replicas at once, or their devices. Each is started again where it was, or on a new node."""
        for replica in replicas:
            replica.state = State.GONE  # all at once: no request of one is repeated on another of them
            after(self.env, self._checks_s(self.rules.fall), partial(self._unlist, replica))
        for replica in replicas:
            (replica.lose_device if device else replica.die)()
            self._begin(self._add(replica.zone), 0.0 if restart else self.starts.node_s)

    def roll(self, *, max_surge: int, max_unavailable: int) -> Generator[simpy.Event, Any, None]:
        """Replace all replicas, as a Deployment does. A process for the environment."""
        old, size = self.present, self.wanted
        while old:
            old = [one for one in old if one.state is State.READY and not one.leaving]
            spare = len(self.ready) - (size - max_unavailable)
            for replica in old[: max(0, spare)]:
                self.drain(replica)
                old.remove(replica)
            for _ in range(size + max_surge - len(self.present)):
                if len(self.present) - len(old) < size:
                    self._begin(self._add(), self.starts.node_s)
            yield self.env.timeout(1.0)

    def _add(self, zone: int | None = None) -> Replica:
        zone = len(self.all) % self.zones if zone is None else zone
        replica = Replica(self.env, self.kinds[0], self.settings, zone=zone, answer_s=self.answer_s)
        self.all.append(replica)
        return replica

    def _begin(self, replica: Replica, before_s: float, failures: int = 0) -> None:
        """Start a replica's process after `before_s`, again and again until a start succeeds."""

        def end() -> None:
            if replica.state is not State.STARTING:
                return
            if self.starts.needs_hub and not self.hub:
                delay_s = min(_CRASH_BACKOFF_S * 2.0**failures, _MOST_CRASH_BACKOFF_S)
                self._begin(replica, delay_s, failures + 1)
                return
            replica.start()
            after(self.env, self._checks_s(self.rules.rise), lambda: self._list_if_ready(replica))

        after(self.env, before_s + self.starts.process_s, end)

    def _list_if_ready(self, replica: Replica) -> None:
        if replica.state is State.READY and not replica.listed:
            self._list(replica)

    # Costs.

    def device_s(self) -> float:
        """Return the seconds for which devices were held so far: from the wish for a replica to its end."""
        return sum(min(one.died, self.env.now) - one.born for one in self.all)


class _Attempt:
    """A client's attempt on its way through the balancer, which may try several replicas."""

    __slots__ = ("answered", "fleet", "kind", "left", "server")

    def __init__(self, fleet: Fleet, kind: Kind, answered: Callable[[int, int], None]) -> None:
        self.fleet, self.kind, self.answered = fleet, kind, answered
        self.left = fleet.rules.retries
        self.server: Replica | None = None

    def send(self, avoid: Replica | None) -> None:
        fleet = self.fleet
        while True:
            if not fleet.servers:
                self.answered(NOT_READY, _NO_SERVER_RETRY_S)
                return
            server = self.server = fleet.balancer.choose(fleet.servers, avoid)
            fleet.changed(server, 1)
            rejected = server.offer(Place(self.kind, self._from_server))
            if rejected is None:
                return
            fleet.changed(server, -1)
            if self.left == 0:
                self._finish(*rejected)
                return
            self.left -= 1
            avoid = server

    def _from_server(self, status: int, retry_after_s: int) -> None:
        server = self.server
        assert server is not None
        self.fleet.changed(server, -1)
        if status in _RETRIED and self.left:
            self.left -= 1
            self.send(server)
        else:
            self._finish(status, retry_after_s)

    def _finish(self, status: int, retry_after_s: int) -> None:
        self.answered(status, _BROKEN_RETRY_S if status == GONE else retry_after_s)


class _Request:
    """A client's request, with all its attempts."""

    __slots__ = ("attempts", "began", "fleet", "kind", "refused", "url")

    def __init__(self, fleet: Fleet, kind: Kind, url: int | None) -> None:
        self.fleet, self.kind, self.url, self.began = fleet, kind, url, fleet.env.now
        self.attempts = self.refused = 0

    def send(self) -> None:
        self.attempts += 1
        if self.fleet.cache is not None and self.url is not None:
            self.fleet.cache.get(self.url, self._answered, lambda answered: self.fleet.send(self.kind, answered))
        else:
            self.fleet.send(self.kind, self._answered)

    def _answered(self, status: int, retry_after_s: int) -> None:
        fleet, since_s = self.fleet, self.fleet.env.now - self.began
        if status != OK:
            self.refused += status == FULL
            wait_s = fleet.client.waits_s(self.attempts, since_s, retry_after_s, fleet.chance)
            if wait_s is not None:
                after(fleet.env, wait_s, self.send)
                return
        fleet.outcomes.append(Outcome(self.began, status, since_s, self.attempts, self.refused))
