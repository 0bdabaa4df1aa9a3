"""Load balancers: which replica gets a request, and what happens after a failed attempt."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar


@dataclass(eq=False)
class Server:
    """A replica as a balancer knows it."""

    open: int = 0
    """Requests that it was sent and has not answered."""
    changed: int = 0
    """Number of the last change of `open`, counted over all servers."""


S = TypeVar("S", bound=Server)


class Balancer(Protocol):
    """Chooses one of the servers that pass their health checks."""

    def choose(self, servers: Sequence[S], avoid: S | None) -> S:
        """Return one of the servers, of which there is at least one. `avoid` failed just now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a balancer does besides choosing.

    A failed attempt (429, 502, 503) is repeated up to `retries` times. A server counts as down after `fall` failed
    checks and as up after `rise`: checks come every `inter_s`, and every `fastinter_s` while the state changes.
    """

    retries: int = 0
    inter_s: float = 1.0
    fastinter_s: float = 0.2
    fall: int = 2
    rise: int = 1


HAPROXY = Rules(retries=3)
"""deploy/haproxy/haproxy.cfg: `retries 3`, `option redispatch 1`, `check inter 1s fastinter 200ms fall 2 rise 1`. The
429 of a replica is retried as 425."""

SERVICE = Rules(inter_s=5.0, fastinter_s=5.0)
"""A Kubernetes Service: no retries, and the readiness probe of deploy/kubernetes/base/deployment.yaml."""

RAY = Rules(inter_s=0.1, fastinter_s=0.1)
"""Ray Serve's proxy: no retries. It learns of a ready replica from the controller, whose loop takes 0.1 s."""


@dataclass
class RoundRobin:
    """Each server in turn."""

    _next: int = 0

    def choose(self, servers: Sequence[S], avoid: S | None) -> S:
        self._next += 1
        if servers[self._next % len(servers)] is avoid:
            self._next += 1
        return servers[self._next % len(servers)]


@dataclass
class Random:
    """Any server, each with the same chance."""

    chance: random.Random

    def choose(self, servers: Sequence[S], avoid: S | None) -> S:
        return self.chance.choice([server for server in servers if server is not avoid] or servers)


@dataclass
class PowerOfTwo:
    """Of two random servers, the one with fewer open requests."""

    chance: random.Random

    def choose(self, servers: Sequence[S], avoid: S | None) -> S:
        others = [server for server in servers if server is not avoid] or servers
        if len(others) == 1:
            return others[0]
        one, other = self.chance.sample(others, 2)
        return one if one.open <= other.open else other


@dataclass
class LeastRequests:
    """A server with the fewest open requests, as HAProxy's `leastconn`.

    Among equals, the one whose number has not changed for the longest time: HAProxy keeps them in a tree, and inserts a
    server after its equals. The server that failed just now is avoided if there is another (`option redispatch 1`).
    """

    def choose(self, servers: Sequence[S], avoid: S | None) -> S:
        best: S | None = None
        for server in servers:
            if server is not avoid and (
                best is None or server.open < best.open or (server.open == best.open and server.changed < best.changed)
            ):
                best = server
        return best or servers[0]
