"""A simulated replica: its admission decides as the service's own, and its queue is the one of the textbooks."""

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import simpy

from app.errors import TurboError
from app.inference.admission import Admission
from app.inference.admission import Place as RealPlace
from benchmarks.fleet.arrivals import arrivals, steady
from benchmarks.fleet.devices import Kind, fake
from benchmarks.fleet.fleet import Fleet
from benchmarks.fleet.replica import Place, Replica, Settings, State, after

KINDS = [
    Kind([0.2, 0.3, 0.4, 0.45]),
    Kind([0.9, 1.7], side=1024),
    Kind([0.5], steps=4, pictures=3),
    Kind([12.0], side=1536, steps=8, pictures=8),
]


def ignore(status: int, retry_after_s: int) -> None:
    del status, retry_after_s


class Compared(Replica):
    """A replica that asks the service's `Admission`, in the same state, what it would do."""

    def __init__(self, env: simpy.Environment, settings: Settings) -> None:
        super().__init__(env, KINDS[0], settings)
        self.decisions: list[tuple[tuple[int, int] | None, tuple[int, int] | None]] = []

    def offer(self, place: Place) -> tuple[int, int] | None:
        real = asyncio.run(self._real(place))
        ours = super().offer(place)
        self.decisions.append((ours, real))
        return ours

    async def _real(self, place: Place) -> tuple[int, int] | None:
        lock = SimpleNamespace(
            serving=bool(self._served),
            serving_s=self._serving_s if self._served else 0.0,
            running_s=self.env.now - self._since if self._served else 0.0,
        )
        registry: Any = SimpleNamespace(costs=self._costs, lock=lock)
        admission = Admission(registry, max_queue=self.settings.max_queue, deadline_s=self.settings.deadline_s)
        admission.draining = self.state is State.DRAINING
        for waiting in self._waiting:
            admission.places.add(RealPlace(asyncio.timeout(None), 0, [waiting.kind.params] * waiting.kind.pictures))
        try:
            async with admission.admit() as mine:
                request = [place.kind.params] * place.kind.pictures
                admission.check_in_time(request, mine)
        except TurboError as error:
            return error.status, error.retry_after_s or 0
        return None


@pytest.mark.parametrize("settings", [Settings(max_queue=6, deadline_s=8), Settings(max_queue=100, deadline_s=3)])
def test_admission_decides_as_the_services_own_and_names_the_same_retry_after(settings: Settings) -> None:
    env, chance = simpy.Environment(), random.Random(1)
    replica = Compared(env, settings)
    replica.start()

    def clients() -> Any:
        for number in range(1500):
            yield env.timeout(chance.expovariate(6 if number % 300 < 150 else 1.5))
            (kind,) = chance.choices(KINDS, [20, 3, 2, 1])
            replica.offer(Place(kind, ignore))
        replica.drain()
        replica.offer(Place(KINDS[0], ignore))

    env.process(clients())
    env.run()

    assert [ours for ours, _ in replica.decisions] == [real for _, real in replica.decisions]
    statuses = [ours[0] if ours else 200 for ours, _ in replica.decisions]
    assert min(statuses.count(200), statuses.count(429)) > 200
    assert {503, 422} <= {*statuses}


def test_the_mean_wait_of_single_calls_is_that_of_the_md1_queue() -> None:
    busy, call_s = 0.7, 0.5
    fleet = Fleet([Kind([call_s])], 1, settings=Settings(max_queue=10_000, deadline_s=1e6))
    fleet.offer(arrivals(steady(busy / call_s), lasts_s=100_000, seed=3))
    fleet.run()

    wait_s = np.mean([outcome.latency_s for outcome in fleet.outcomes]) - call_s
    assert wait_s == pytest.approx(busy * call_s / (2 * (1 - busy)), rel=0.04)


def test_waiting_requests_share_a_call_and_all_end_with_it() -> None:
    fleet = Fleet([fake(1.0, max_batch=4)], 1)
    fleet.offer(np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5]))
    fleet.run()

    ends = [outcome.at_s + outcome.latency_s for outcome in fleet.outcomes]
    assert ends == pytest.approx([1, 5, 5, 5, 5, 6])


def test_a_replica_that_drains_serves_what_it_accepted_and_ends() -> None:
    fleet = Fleet([fake(1.0, max_batch=1)], 1)
    fleet.offer(np.array([0.0, 0.1, 1.5]))
    after(fleet.env, 0.5, fleet.all[0].drain)
    fleet.run()

    assert {outcome.at_s: outcome.status for outcome in fleet.outcomes} == {0.0: 200, 0.1: 200, 1.5: 503}
    assert fleet.all[0].died == 2.0


def test_at_the_deadline_a_request_gets_504() -> None:
    fleet = Fleet([fake(1.0, max_batch=1)], 1, settings=Settings(deadline_s=3.5))
    slow = Kind([10.0], side=64)
    replica = fleet.all[0]
    answers: list[tuple[float, int]] = []
    for kind in (slow, fleet.kinds[0]):  # the device becomes slow, so the second request is accepted
        replica.offer(Place(kind, lambda status, _: answers.append((fleet.env.now, status))))
    fleet.run()

    assert [status for _, status in answers] == [504, 504]
