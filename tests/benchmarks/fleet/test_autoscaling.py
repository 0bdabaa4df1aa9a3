"""What an autoscaler of the simulation sees and does, and the results that are written down."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.fleet import reality
from benchmarks.fleet.arrivals import arrivals, steady, with_burst
from benchmarks.fleet.autoscaling import CAPACITY, CHOSEN, WORLD, run
from benchmarks.fleet.devices import A100
from benchmarks.fleet.fleet import Fleet
from benchmarks.fleet.prometheus import SIGNALS, Prometheus
from benchmarks.fleet.scaling import External

DOCUMENT = Path(__file__).parents[3] / "docs" / "observability.md"


def test_the_simulation_agrees_with_the_measured_processes(capsys: pytest.CaptureFixture[str]) -> None:
    assert reality.show() == 0, capsys.readouterr().out


def test_prometheus_sees_the_rate_of_pictures_and_with_rejections_that_of_requests() -> None:
    fleet = Fleet([A100], 2)
    prometheus = Prometheus(fleet)
    fleet.offer(arrivals(steady(3 * CAPACITY), lasts_s=300, seed=1))
    fleet.run(300)
    metrics = prometheus.metrics(60)

    values = {name: one.value for name, one in metrics.items() if isinstance(one, External)}
    assert (values["pictures"], values["busy"]) == pytest.approx((2 * CAPACITY, 2), rel=0.03)
    refused = 4 * CAPACITY  # a third of the requests, each at four replicas' doors: the first and three retries
    assert values["offered"] == pytest.approx(2 * CAPACITY + refused, rel=0.1)


def test_the_chosen_rule_follows_a_burst_up_and_down_again() -> None:
    rate = with_burst(steady(0.5 * CAPACITY), at_s=600, lasts_s=900, times=6)
    result = run(CHOSEN, replace(WORLD, rate=rate, lasts_s=3600.0))
    sizes = [size for _, size in result.sizes]

    assert sizes[0] == sizes[-1] == 1
    assert max(sizes) >= 5
    assert result.turns_per_hour == 1


def test_a_fleet_at_zero_wakes_up_for_a_request_and_goes_back() -> None:
    world = replace(WORLD, rate=steady(1 / 1200), lasts_s=4 * 3600.0, replicas=0, min_replicas=0)
    result = run(CHOSEN, replace(world, client=replace(world.client, patience_s=600.0)))

    assert {size for _, size in result.sizes} == {0, 1}
    assert result.seen == 0
    assert 60 < result.p99_s < 60 + 30 + 10
    assert 0 < result.devices < 1


def test_the_signals_name_metrics_of_the_service() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    names = {name for signal in SIGNALS.values() for name in re.findall(r"turbo_\w+", signal)}

    assert len(names) == 5
    assert all(f"| `{name}` |" in text for name in names)
