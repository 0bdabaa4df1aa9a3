"""The simulated fleet: balancers, arrivals, a cache, failures and updates."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.fleet.arrivals import arrivals, daily, steady, with_burst, with_flash_crowd
from benchmarks.fleet.balancers import HAPROXY, Balancer, LeastRequests, PowerOfTwo, Random, RoundRobin, Server
from benchmarks.fleet.cache import Cache, draw, zipf
from benchmarks.fleet.clients import IMPATIENT, PATIENT
from benchmarks.fleet.devices import A100, Kind, fake
from benchmarks.fleet.fleet import Fleet, Starts
from benchmarks.fleet.replica import Settings, after

HOUR_S = 3600.0


def statuses(fleet: Fleet) -> Counter[int]:
    return Counter(outcome.status for outcome in fleet.outcomes)


@pytest.mark.parametrize(
    "rate",
    [
        steady(3),
        daily(6, trough=1),
        with_burst(steady(2), at_s=600, lasts_s=300, times=10),
        with_flash_crowd(steady(2), at_s=600, times=10, rise_s=60, half_life_s=300),
    ],
)
def test_arrivals_have_the_rate_that_was_asked_for_and_the_same_seed_gives_the_same(rate: object) -> None:
    times = arrivals(rate, lasts_s=6 * HOUR_S, seed=5)  # type: ignore[arg-type]
    expected = rate(np.arange(0, 6 * HOUR_S, 1.0))  # type: ignore[operator]
    counts, _ = np.histogram(times, bins=72, range=(0, 6 * HOUR_S))
    wanted = expected.reshape(72, -1).sum(axis=1)

    assert np.abs(counts - wanted).max() < 5 * np.sqrt(wanted.max())
    assert np.array_equal(times, arrivals(rate, lasts_s=6 * HOUR_S, seed=5))  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_outcomes() -> None:
    def outcomes(seed: int) -> list[object]:
        fleet = Fleet([A100], 3, balancer=PowerOfTwo(random.Random(seed)), client=IMPATIENT, seed=seed)
        fleet.offer(arrivals(steady(60), lasts_s=60, seed=seed))
        after(fleet.env, 20, lambda: fleet.kill(fleet.ready[:1]))
        fleet.run()
        return [*fleet.outcomes]

    assert outcomes(1) == outcomes(1) != outcomes(2)


@pytest.mark.parametrize(
    "balancer", [RoundRobin(), Random(random.Random(0)), PowerOfTwo(random.Random(0)), LeastRequests()]
)
def test_no_balancer_repeats_an_attempt_on_the_server_that_failed(balancer: Balancer) -> None:
    servers = [Server(open=number) for number in range(3)]
    chosen = [balancer.choose(servers, servers[0]) for _ in range(60)]

    assert servers[0] not in chosen
    assert balancer.choose(servers[:1], servers[0]) is servers[0]


def test_round_robin_takes_turns_and_random_does_not() -> None:
    servers = [Server() for _ in range(4)]
    turns, dice = RoundRobin(), Random(random.Random(0))

    assert {*Counter(id(turns.choose(servers, None)) for _ in range(100)).values()} == {25}
    assert {*Counter(id(dice.choose(servers, None)) for _ in range(100)).values()} != {25}


def test_queues_are_shorter_the_more_a_balancer_knows() -> None:
    """Where calls differ: with equal calls, round robin is as good as the fewest requests."""
    kinds = [Kind([0.1]), Kind([0.1]), Kind([0.7], side=1024)]

    def p99_s(balancer: Balancer) -> float:
        fleet = Fleet(kinds, 6, balancer=balancer, settings=Settings(max_queue=1000))
        fleet.offer(arrivals(steady(0.8 * 6 / 0.3), lasts_s=4000, seed=1))
        fleet.run()
        return float(np.quantile([outcome.latency_s for outcome in fleet.outcomes], 0.99))

    chance = random.Random(1)
    waits = [p99_s(one) for one in (LeastRequests(), PowerOfTwo(chance), RoundRobin(), Random(chance))]
    assert waits == sorted(waits)


@pytest.mark.parametrize("exponent", [0.7, 1.0, 1.2])
def test_the_hit_rate_is_that_of_ches_approximation(exponent: float) -> None:
    """Che, Tung and Wang, Hierarchical Web caching systems (2002): an LRU cache keeps an answer for a fixed time."""
    urls, kept, asked = 5000, 500, 200_000
    shares = zipf(urls, exponent=exponent)
    low, high = 0.0, 1e9
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - np.exp(-shares * middle)).sum() < kept else (low, middle)
    expected = float((shares * (1 - np.exp(-shares * low))).sum())
    cache = Cache(lambda: 0.0, max_bytes=kept * 1000, answer_bytes=1000, ttl_s=1)
    for url in draw(shares, asked, seed=2).tolist():
        cache.get(url, lambda *_: None, lambda answered: answered(200, 0))

    assert cache.hits / asked == pytest.approx(expected, rel=0.02)


def test_a_cache_asks_once_for_a_url_and_serves_stale_answers_instead_of_errors() -> None:
    now, fetched, answers = [0.0], [], []  # type: ignore[var-annotated]
    cache = Cache(lambda: now[0], max_bytes=10, answer_bytes=1, ttl_s=60, stale_on_error=True)
    for _ in range(3):
        cache.get(7, lambda status, _: answers.append(status), fetched.append)
    assert (len(fetched), answers) == (1, [])
    fetched.pop()(200, 0)
    now[0] = 61
    cache.get(7, lambda status, _: answers.append(status), fetched.append)
    fetched.pop()(503, 5)
    cache.get(8, lambda status, _: answers.append(status), fetched.append)
    fetched.pop()(503, 5)

    assert answers == [200, 200, 200, 200, 503]


def test_behind_haproxy_no_client_sees_that_a_replica_dies() -> None:
    fleet = Fleet([fake(0.25)], 3)
    fleet.offer(arrivals(steady(6), lasts_s=60, seed=1))
    after(fleet.env, 20, lambda: fleet.kill(fleet.ready[:1]))
    fleet.run()

    assert statuses(fleet) == {200: len(fleet.outcomes)}
    assert len(fleet.ready) == len(fleet.servers) == 3


def test_without_retries_clients_of_a_dead_replica_get_an_error_until_its_check_fails() -> None:
    fleet = Fleet([fake(0.25)], 3, rules=replace(HAPROXY, retries=0))
    fleet.offer(arrivals(steady(6), lasts_s=60, seed=1))
    after(fleet.env, 20, lambda: fleet.kill(fleet.ready[:1]))
    fleet.run()

    failed = [outcome.at_s for outcome in fleet.outcomes if outcome.status == 502]
    assert failed
    assert max(failed) < 20 + 1.2


@pytest.mark.parametrize(("surge", "unavailable"), [(1, 0), (0, 1), (2, 1)])
def test_a_rolling_update_replaces_all_replicas_and_keeps_to_its_limits(surge: int, unavailable: int) -> None:
    fleet = Fleet([fake(0.25)], 4, starts=Starts(process_s=20))
    old = [*fleet.all]
    fleet.offer(arrivals(steady(6), lasts_s=300, seed=1))
    after(fleet.env, 10, lambda: fleet.env.process(fleet.roll(max_surge=surge, max_unavailable=unavailable)))
    ready, present = [], []
    while fleet.env.peek() < float("inf"):
        fleet.env.step()
        ready.append(len(fleet.ready))
        present.append(len(fleet.present))

    assert statuses(fleet) == {200: len(fleet.outcomes)}
    assert (min(ready), max(present)) == (4 - unavailable, 4 + surge)
    assert not {*fleet.ready} & {*old}
    assert len(fleet.ready) == 4


def test_starts_that_need_the_hub_succeed_when_it_is_back() -> None:
    fleet = Fleet(
        [fake(0.25)], 1, starts=Starts(process_s=20, needs_hub=True), client=replace(PATIENT, patience_s=600.0)
    )
    fleet.hub = False
    fleet.kill(fleet.ready)
    fleet.offer(np.array([10.0]))
    fleet.run(100)
    assert not fleet.ready
    fleet.hub = True
    fleet.run()

    assert statuses(fleet) == {200: 1}
    assert 100 < fleet.outcomes[0].latency_s < 200
