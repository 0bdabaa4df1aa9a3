"""SDXL-Turbo's schedule: Euler's ancestral method. The caller draws the noise."""

import copy
from typing import Any

import torch
from torch import Tensor


class Schedule:
    """The sigmas and timesteps of diffusers' EulerAncestralDiscreteScheduler for a number of steps, without state.

    It computes what that scheduler does, to the last bit, but copies nothing between host and device, and needs no
    noise for the last step, which adds none.
    """

    def __init__(self, scheduler: Any, num_inference_steps: int, device: torch.device) -> None:
        settled = copy.copy(scheduler)
        settled.set_timesteps(num_inference_steps)
        self.timesteps: tuple[Tensor, ...] = settled.timesteps.to(device).unbind()
        self._sigmas: Tensor = settled.sigmas
        self._initial: Tensor = settled.init_noise_sigma
        self._predicts_v = settled.config.prediction_type == "v_prediction"

    def initial(self, noise: Tensor) -> Tensor:
        """Return the latents to begin with, for text to image."""
        return noise * self._initial

    def noised(self, latents: Tensor, noise: Tensor, step: int) -> Tensor:
        """Return the latents of a picture with the noise that `step` begins with."""
        return latents + noise * self._sigmas[step].to(latents.dtype)

    def scaled(self, latents: Tensor, step: int) -> Tensor:
        """Return the latents as the UNet takes them."""
        return latents / ((self._sigmas[step] ** 2 + 1) ** 0.5)

    def adds_noise(self, step: int) -> bool:
        """Tell whether `step` needs noise: the last does not."""
        return bool(self._sigmas[step + 1] > 0)

    def after(self, step: int, latents: Tensor, predicted: Tensor, noise: Tensor | None) -> Tensor:
        """Return the latents after `step`, from the UNet's prediction, and new noise of the same shape."""
        sigma, next_sigma = self._sigmas[step], self._sigmas[step + 1]
        up = (next_sigma**2 * (sigma**2 - next_sigma**2) / sigma**2) ** 0.5
        down = (next_sigma**2 - up**2) ** 0.5
        sample = latents.float()
        if self._predicts_v:
            original = predicted * (-sigma / (sigma**2 + 1) ** 0.5) + (sample / (sigma**2 + 1))
        else:
            original = sample - sigma * predicted
        result = sample + (sample - original) / sigma * (down - sigma)
        if noise is not None:
            result = result + noise * up
        return result.to(predicted.dtype)
