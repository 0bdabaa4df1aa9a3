"""A replica: one process with one device, its admission, its queue and its batches, as in app/inference.

Admission counts waiting pictures instead of adding up every place, so a request takes constant time. A test compares
its decisions with `app.inference.admission.Admission`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import simpy

from benchmarks.fleet.balancers import Server
from benchmarks.fleet.cache import OK
from benchmarks.fleet.devices import Kind, costs_after_warm_up

FULL, GONE, NOT_READY, TOO_LATE, BEYOND = 429, 502, 503, 504, 422
_LEAST_RETRY_S, _MOST_RETRY_S, _MAX_DEADLINES, _LOST_RETRY_S = 1, 120, 10, 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The service's settings, with its defaults."""

    max_queue: int = 32
    deadline_s: float = 60.0
    drain_s: float = 60.0


class State(Enum):
    """Where a replica is in its life."""

    STARTING = auto()
    READY = auto()
    DRAINING = auto()
    GONE = auto()


class Place:
    """An attempt of a request at one replica. `answered` gets its status and `Retry-After`, at most once."""

    __slots__ = ("answered", "ends", "expected_s", "kind", "least_s")

    def __init__(self, kind: Kind, answered: Callable[[int, int], None]) -> None:
        self.kind = kind
        self.answered: Callable[[int, int], None] | None = answered
        self.ends = math.inf
        self.expected_s = self.least_s = 0.0

    def answer(self, status: int, retry_after_s: int) -> None:
        if self.answered is not None:
            answered, self.answered = self.answered, None
            answered(status, retry_after_s)


class Replica(Server):
    """A process of the service. `reference` is the kind of its warm-up; `answer_s` is the time of HTTP and PNG.

    The device's costs are learned by the service's own `CostModel`.
    """

    def __init__(
        self, env: simpy.Environment, reference: Kind, settings: Settings, *, zone: int = 0, answer_s: float = 0.0
    ) -> None:
        super().__init__()
        self.env, self.settings, self.zone = env, settings, zone
        self.state = State.STARTING
        self.born, self.died = env.now, math.inf
        self.listed = False
        """Whether the balancer sends requests here."""
        self.leaving = False
        """Whether it will be stopped."""
        self.pictures = self.refused = 0
        self.batch = 0
        """Pictures of the running call."""
        self._reference, self._answer_s = reference, answer_s
        self._costs = costs_after_warm_up(reference)
        self._known: dict[Kind, tuple[float, float]] = {}
        self._waiting: dict[Place, None] = {}
        self._waiting_pictures: dict[Kind, int] = {}
        self._served: list[Place] = []
        self._serving_s = self._since = self._busy_s = self._longest_s = 0.0
        self._next_expiry = math.inf
        self._learned()

    # Its life.

    def start(self) -> None:
        """Be ready: the process has loaded and warmed up."""
        self.state = State.READY

    def drain(self) -> None:
        """At SIGTERM: reject new requests, and end when the accepted ones are done or the drain time is over."""
        if self.state is State.GONE:
            return
        self.state = State.DRAINING
        if self.idle:
            self.die()
        else:
            self._later(self.settings.drain_s, lambda: self._end_with(NOT_READY, _LEAST_RETRY_S))

    def die(self) -> None:
        """End at once. The balancer sees the connections of all accepted requests break."""
        self._end_with(GONE, 0)

    def lose_device(self) -> None:
        """Answer all requests with 503, and end."""
        self._end_with(NOT_READY, _LOST_RETRY_S)

    # What others see.

    @property
    def waiting(self) -> int:
        """Accepted requests that the device has not begun."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        return not self._waiting and not self.batch

    @property
    def busy_s(self) -> float:
        """Seconds that the device was busy, the running call included."""
        return self._busy_s + (self.env.now - self._since if self.batch else 0.0)

    def backlog_s(self) -> float:
        """As `Admission.backlog_s`."""
        waiting_s = 0.0
        for kind, pictures in self._waiting_pictures.items():
            waiting_s += self._costs_of(kind)[0] * pictures
        running_s = self._serving_s - (self.env.now - self._since) if self._served else 0.0
        return waiting_s + max(0.0, running_s)

    def retry_after_s(self) -> int:
        """As `Admission.retry_after_s`."""
        return max(_LEAST_RETRY_S, min(_MOST_RETRY_S, math.ceil(self.backlog_s())))

    # Its requests.

    def offer(self, place: Place) -> tuple[int, int] | None:
        """Accept an attempt, or return the status and the `Retry-After` of its rejection.

        The checks are those of `Admission.check`, and then of `Admission.check_in_time`.
        """
        if self.state is not State.READY:
            return (NOT_READY, self.retry_after_s()) if self.state is State.DRAINING else (GONE, 0)
        if (refusal := self._refusal(place)) is not None:
            self.refused += 1
            return refusal
        kind = place.kind
        self._waiting[place] = None
        self._waiting_pictures[kind] = self._waiting_pictures.get(kind, 0) + kind.pictures
        if place.ends < self._next_expiry:
            self._expire_at(place.ends)
        if not self.batch:
            self._serve_next()
        return None

    def leave(self, place: Place) -> None:
        """The client has disconnected."""
        if place in self._waiting:
            self._drop(place)
        place.answered = None

    def _refusal(self, place: Place) -> tuple[int, int] | None:
        deadline_s = self.settings.deadline_s
        ahead, backlog_s = len(self._waiting) + bool(self._served), self.backlog_s()
        too_long = ahead and backlog_s + 2 * self._long_call_s > deadline_s
        if ahead > self.settings.max_queue or too_long:
            return FULL, self.retry_after_s()
        expected_s, least_s = self._costs_of(place.kind)
        place.expected_s, place.least_s = expected_s * place.kind.pictures, least_s * place.kind.pictures
        further_s = place.expected_s - self._costs_of(self._reference)[0]
        deadline_s = min(deadline_s + max(0.0, further_s), _MAX_DEADLINES * deadline_s)
        if place.least_s > deadline_s:
            return BEYOND, 0
        if backlog_s and backlog_s + place.expected_s > deadline_s:
            return FULL, self.retry_after_s()
        place.ends = self.env.now + deadline_s
        self._longest_s = max(self._longest_s, place.least_s)
        return None

    def _serve_next(self) -> None:
        """As `BatchingLock._serve_next` and `_take`."""
        now = self.env.now
        if now + self._longest_s > self._next_expiry:
            for place in [place for place in self._waiting if now + place.least_s > place.ends]:
                self._drop(place)
                place.answer(TOO_LATE, self.retry_after_s())
        if not self._waiting:
            return
        first = next(iter(self._waiting))
        served = [first]
        room, done, ends = first.kind.max_batch - first.kind.pictures, now + first.least_s, first.ends
        for place in self._waiting:
            if room <= 0:
                break
            in_time = done + place.least_s <= min(ends, place.ends)
            if place is not first and place.kind is first.kind and in_time and place.kind.pictures <= room:
                served.append(place)
                room, done, ends = room - place.kind.pictures, done + place.least_s, min(ends, place.ends)
        for place in served:
            self._drop(place)
        self._served, self._serving_s, self._since = served, sum(place.expected_s for place in served), now
        self.batch = sum(place.kind.pictures for place in served)
        self._later(first.kind.seconds(self.batch), self._end)

    def _end(self) -> None:
        served, pictures = self._served, self.batch
        kind, seconds = served[0].kind, self.env.now - self._since
        self._busy_s += seconds
        calls, rest = divmod(pictures, kind.max_batch)
        for size in [kind.max_batch] * calls + [rest] * bool(rest):
            self._costs.learn([kind.params] * size, kind.call_s[size - 1])
        self._costs.learn_requests([[kind.params] * kind.pictures] * len(served))
        self._learned()
        self._served, self.batch = [], 0
        self._serve_next()
        self.pictures += pictures
        if self._answer_s:
            after(self.env, self._answer_s, lambda: _answer_all(served, OK, 0))
        else:
            _answer_all(served, OK, 0)
        if self.state is State.DRAINING and self.idle:
            self.die()

    def _end_with(self, status: int, retry_after_s: int) -> None:
        places = [*self._waiting, *self._served]
        self._busy_s, self.batch = self.busy_s, 0
        self.state, self.died = State.GONE, self.env.now
        self._waiting.clear()
        self._waiting_pictures.clear()
        self._served = []
        _answer_all(places, status, retry_after_s)

    def _drop(self, place: Place) -> None:
        del self._waiting[place]
        self._waiting_pictures[place.kind] -= place.kind.pictures

    # Deadlines: one timer for the earliest.

    def _expire_at(self, when: float) -> None:
        self._next_expiry = when
        self._later(when - self.env.now, self._expire)

    def _expire(self) -> None:
        now, places = self.env.now, [*self._waiting, *self._served]
        for place in places:
            if place.ends <= now and place.answered is not None:
                if place in self._waiting:
                    self._drop(place)
                place.answer(TOO_LATE, self.retry_after_s())
        self._next_expiry = min((place.ends for place in places if place.ends > now), default=math.inf)
        if self._next_expiry < math.inf:
            self._expire_at(self._next_expiry)

    # Costs, kept until the next call.

    def _learned(self) -> None:
        self._known.clear()
        self._long_call_s = self._costs.long_call_s

    def _costs_of(self, kind: Kind) -> tuple[float, float]:
        """Return the expected and the least seconds of a picture."""
        if (known := self._known.get(kind)) is None:
            request = [kind.params]
            known = self._known[kind] = (self._costs.expected_s(request), self._costs.least_s(request))
        return known

    def _later(self, delay_s: float, then: Callable[[], Any]) -> None:
        """Call `then` later, unless this process has ended until then."""
        after(self.env, delay_s, lambda: None if self.state is State.GONE else then())


def after(env: simpy.Environment, delay_s: float, then: Callable[[], Any]) -> None:
    """Call `then` in `delay_s` seconds."""
    timeout = env.timeout(delay_s)
    assert timeout.callbacks is not None
    timeout.callbacks.append(lambda _: then())


def _answer_all(places: list[Place], status: int, retry_after_s: int) -> None:
    for place in places:
        place.answer(status, retry_after_s)
