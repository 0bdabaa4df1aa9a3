"""The schedule computes what diffusers' scheduler does, to the last bit."""

from typing import Any

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler

from app.pipelines.schedule import Schedule

SHAPE = (2, 4, 8, 8)


def scheduler(prediction_type: str) -> Any:
    """SDXL-Turbo's, from its scheduler_config.json."""
    return EulerAncestralDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="trailing",
        prediction_type=prediction_type,
    )


def prediction(scaled: torch.Tensor) -> torch.Tensor:
    return (scaled * 0.9).tanh()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("steps", "begin"), [(1, 0), (2, 0), (3, 0), (4, 0), (2, 1), (4, 1), (4, 3)])
def test_every_step_is_that_of_diffusers_scheduler(
    prediction_type: str, steps: int, begin: int, dtype: torch.dtype
) -> None:
    theirs = scheduler(prediction_type)
    ours = Schedule(theirs, steps, torch.device("cpu"))
    theirs.set_timesteps(steps)
    theirs.set_begin_index(begin)
    one, other = (torch.Generator().manual_seed(0) for _ in range(2))
    noise = torch.randn(SHAPE, dtype=dtype)
    start = torch.randn(SHAPE, dtype=dtype)
    latents = theirs.add_noise(start, noise, theirs.timesteps[begin].expand(len(start)))
    assert torch.equal(ours.noised(start, noise, begin), latents)
    assert torch.equal(ours.initial(noise), noise * theirs.init_noise_sigma)
    made = latents
    for step in range(begin, steps):
        timestep = theirs.timesteps[step]
        assert torch.equal(ours.timesteps[step], timestep)
        scaled = theirs.scale_model_input(latents, timestep)
        assert torch.equal(ours.scaled(made, step), scaled)
        latents = theirs.step(prediction(scaled), timestep, latents, generator=one, return_dict=False)[0]
        drawn = torch.randn(SHAPE, generator=other, dtype=dtype) if ours.adds_noise(step) else None
        made = ours.after(step, made, prediction(scaled), drawn)
        assert torch.equal(made, latents)
        assert made.dtype == dtype


def test_only_the_last_step_adds_no_noise() -> None:
    schedule = Schedule(scheduler("epsilon"), 4, torch.device("cpu"))
    assert [schedule.adds_noise(step) for step in range(4)] == [True, True, True, False]
