"""Ray Serve's autoscaler of the simulation, held to Ray's own functions."""

import random
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.fleet.arrivals import steady, with_burst
from benchmarks.fleet.autoscaling import BEHIND_RAY, CAPACITY, RAY_CHOSEN, run
from benchmarks.fleet.ray_serve import Autoscaler, Config, mean
from tests.deploy.ray_cluster import importing_ray


@pytest.mark.parametrize("factor", [0.4, 1.0, 1.5])
def test_decisions_are_those_of_ray_s_policy(factor: float) -> None:
    with importing_ray():
        from ray.serve import autoscaling_policy as policy  # noqa: PLC0415 - the import takes a second
        from ray.serve.config import AutoscalingConfig  # noqa: PLC0415
    config = Config(target_ongoing_requests=4, upscale_delay_s=3, downscale_delay_s=5, max_replicas=12)
    config = replace(config, upscaling_factor=factor, downscaling_factor=factor)
    # Ray's own steps, because its policy as a whole takes the time from the clock.
    ideal_of, scaled, delayed = (
        getattr(policy, name)
        for name in ("_core_replica_queue_length_policy", "_apply_scaling_factors", "_apply_delay_logic")
    )
    theirs, state, ours = AutoscalingConfig(**asdict(config)), dict[str, Any](), Autoscaler(config)
    wanted, running, ongoing, chance, sizes = 1, 1, 4.0, random.Random(1), []
    for second in range(2000):
        ongoing = chance.uniform(0, 60) if chance.random() < 0.2 else ongoing
        running += (wanted > running) - (wanted < running)
        seen = SimpleNamespace(current_num_replicas=running, total_num_requests=ongoing, config=theirs)
        desired = scaled(ideal_of(seen)[0], running, theirs)
        expected, state = delayed(desired, wanted, theirs, state, float(second))

        wanted = ours.decide(second, wanted, running, ongoing)
        sizes.append(wanted)
        assert wanted == max(1, min(12, expected)), second
    assert {1, 12} <= {*sizes}


def test_the_mean_is_that_of_ray_s_controller() -> None:
    with importing_ray():
        from ray.serve._private.autoscaling_metrics_merge import merge_and_aggregate_arrays  # noqa: PLC0415
    chance = random.Random(1)
    for _ in range(100):
        replicas = [
            [(float(at), chance.randint(1, 40)) for at in range(chance.randrange(0, 18, 3), 20, 3)] for _ in range(5)
        ]
        samples = [one for samples in replicas for one in samples]
        expected = merge_and_aggregate_arrays(
            np.array([at for at, _ in samples]),
            np.array([float(number) for _, number in samples]),
            np.cumsum([0, *map(len, replicas)]),
            now=23.0,
        )

        assert mean(replicas, 23.0) == pytest.approx(expected)


def test_replicas_follow_a_burst_up_and_down_again() -> None:
    rate = with_burst(steady(0.5 * CAPACITY), at_s=600, lasts_s=900, times=6)
    result = run(RAY_CHOSEN, replace(BEHIND_RAY, rate=rate, lasts_s=3600.0))
    sizes = [size for _, size in result.sizes]

    assert sizes[0] == sizes[-1] == 1
    assert max(sizes) >= 5
