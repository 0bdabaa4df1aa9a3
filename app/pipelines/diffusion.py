"""One mode of SDXL-Turbo: prompts and seeds in, pictures out, many at once."""

import copy
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils.torch_utils import randn_tensor

from app.errors import DeadPictureError
from app.pipelines.base import (
    MAX_PROMPT_TOKENS,
    BatchKey,
    GenerationParams,
    Img2ImgParams,
    PipelineImage,
)
from app.pipelines.batch_sizes import BatchSizes
from app.pipelines.device import TorchDevice
from app.pipelines.device_errors import device_errors
from app.pipelines.networks.plain import Networks
from app.pipelines.prompts import PromptEncoder
from app.pipelines.work import StageTimes

_SIZES = 64
"""Sizes whose constant tensors are kept."""


class SdxlTurboPipeline:
    """One mode of SDXL-Turbo around the parts of a diffusers pipeline; diffusers' own call takes one prompt's path.

    Every picture has a generator of its own, so that its noise does not depend on its neighbours.
    """

    def __init__(
        self,
        pipe: Any,
        networks: Networks,
        prompts: PromptEncoder,
        device: TorchDevice,
        *,
        batch_sizes: BatchSizes,
        stage_times: StageTimes,
    ) -> None:
        """Wrap `pipe` (a StableDiffusionXLPipeline or StableDiffusionXLImg2ImgPipeline) that is already on `device`."""
        self._pipe = pipe
        self._networks = networks
        self._prompts = prompts
        self._device = device
        self._batch_sizes = batch_sizes
        self._stage_times = stage_times
        # Asked for once: diffusers walks through all modules to answer, which takes milliseconds.
        self._dtype: torch.dtype = pipe.unet.dtype
        self._vae_dtype: torch.dtype = pipe.vae.dtype
        self._stages_s: dict[str, float] | None = None
        self._schedule = functools.cache(self._make_schedule)  # of 1 to 4 steps
        self._time_ids = functools.lru_cache(_SIZES)(self._make_time_ids)

    def __call__(self, batch: Sequence[GenerationParams], /) -> list[PipelineImage]:
        """Make the batch's pictures; the contract is `Pipeline.__call__`."""
        with device_errors(self._device.torch_device), torch.inference_mode():
            if self._batch_sizes.learning and len(batch) > 1:
                return self._learn(batch)
            if self._stage_times.learning and len(batch) == 1 and self._stages_s is None:
                return self._measure(batch)
            return [image for part in self._batch_sizes.split(batch) for image in self._generate(part)]

    def batch_limit(self, key: BatchKey) -> int:
        """Return how many pictures are worth making at once; the contract is `Pipeline.batch_limit`."""
        return self._batch_sizes.limit(key)

    @property
    def dtypes(self) -> dict[str, str]:
        """The number format of each model, such as `float16`."""
        names = ("text_encoder", "text_encoder_2", "unet", "vae")
        return {name: str(getattr(self._pipe, name).dtype).removeprefix("torch.") for name in names}

    @contextmanager
    def timed_stages(self) -> Iterator[dict[str, float]]:
        """Collect the seconds that each stage takes meanwhile. Waits for the device around each, which slows it."""
        self._stages_s = {}
        try:
            yield self._stages_s
        finally:
            self._stages_s = None

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        if self._stages_s is None:
            yield
            return
        self._device.synchronize()
        started = time.monotonic()
        yield
        self._device.synchronize()
        self._stages_s[name] = self._stages_s.get(name, 0.0) + time.monotonic() - started

    def _learn(self, batch: Sequence[GenerationParams]) -> list[PipelineImage]:
        """Find out whether pictures come out the same in a batch of this size, to the last bit."""
        alone = [image for params in batch for image in self._generate([params])]
        together = self._generate(batch)
        if all(np.array_equal(one.pixels, other.pixels) for one, other in zip(alone, together, strict=True)):
            self._batch_sizes.learn(batch[0].batch_key, len(batch))
        return alone

    def _measure(self, batch: Sequence[GenerationParams]) -> list[PipelineImage]:
        """Make one picture, and measure its stages."""
        with self.timed_stages() as stages_s:
            images = self._generate(batch)
        self._stage_times.learn(batch[0], stages_s)
        return images

    def _generate(self, batch: Sequence[GenerationParams]) -> list[PipelineImage]:
        # Noise comes from the CPU on every device: the same seed gives the same noise everywhere, and torch_npu takes
        # no CPU generator for an op of its own.
        generators = [torch.Generator("cpu").manual_seed(params.seed) for params in batch]
        with self._stage("text"):
            prompts = [self._prompts(params.prompt) for params in batch]
        pixels = self._decode(self._denoise(batch, prompts, generators))
        return [
            PipelineImage(
                pixels=picture,
                prompt_tokens=min(prompt.tokens, MAX_PROMPT_TOKENS),
                prompt_truncated=prompt.tokens > MAX_PROMPT_TOKENS,
            )
            for picture, prompt in zip(pixels, prompts, strict=True)
        ]

    def _denoise(
        self, batch: Sequence[GenerationParams], prompts: Sequence[Any], generators: list[torch.Generator]
    ) -> torch.Tensor:
        """Return latents of shape (batch, 4, height / 8, width / 8)."""
        first = batch[0]
        settled, timesteps = self._schedule(first.num_inference_steps)
        scheduler = copy.copy(settled)  # which holds the step index of this call
        begin = first.num_inference_steps - first.effective_steps
        scheduler.set_begin_index(begin)
        conditions = (
            _together([prompt.embeds for prompt in prompts]),
            _together([prompt.pooled for prompt in prompts]),
            self._time_ids(first.width, first.height, len(batch)),
        )
        latents: torch.Tensor
        if isinstance(first, Img2ImgParams):
            start = self._encode(batch, generators)
            latents = scheduler.add_noise(
                start, self._noise(start.shape, generators), timesteps[begin].expand(len(batch))
            )
        else:
            scale = self._pipe.vae_scale_factor
            shape = torch.Size(
                (len(batch), self._pipe.unet.config.in_channels, first.height // scale, first.width // scale)
            )
            latents = self._noise(shape, generators) * scheduler.init_noise_sigma
        for timestep in timesteps[begin:]:
            with self._stage("unet"):
                noise = self._networks.predict_noise(
                    scheduler.scale_model_input(latents, timestep), timestep, *conditions
                )
            latents = scheduler.step(noise, timestep, latents, generator=generators, return_dict=False)[0]
        return latents

    def _encode(self, batch: Sequence[Any], generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Return the latents of the RGB pictures to start from, drawn from the VAE's posterior as diffusers does."""
        vae = self._pipe.vae
        pixels = torch.cat([self._pipe.image_processor.preprocess(params.image) for params in batch])
        with self._stage("vae encode"):
            encoded = self._by_picture(self._networks.encode, pixels.to(self._device.torch_device, self._vae_dtype))
        if not isinstance(vae, AutoencoderTiny):
            encoded = torch.cat(
                [
                    DiagonalGaussianDistribution(parameters).sample(generator)
                    for parameters, generator in zip(torch.split(encoded, 1), generators, strict=True)
                ]
            )
        latents: torch.Tensor = (encoded * vae.config.scaling_factor).to(self._dtype)
        return latents

    def _decode(self, latents: torch.Tensor) -> Iterator[Any]:
        """Return the pictures of the latents, each an array of shape (height, width, 3) of uint8.

        Raises:
            DeadPictureError: One is none.
        """
        vae = self._pipe.vae
        with self._stage("vae decode"):
            pixels = self._by_picture(self._networks.decode, latents.to(self._vae_dtype) / vae.config.scaling_factor)
        check_alive(pixels)
        levels = pixels.float().div(2).add_(0.5).clamp_(0, 1).mul_(255).round_().to(torch.uint8)
        return iter(levels.permute(0, 2, 3, 1).contiguous().cpu().numpy())

    def _by_picture(self, network: Callable[[torch.Tensor], torch.Tensor], tensor: torch.Tensor) -> torch.Tensor:
        """Call the VAE: on the CPU with one picture at a time, as more at once gain nothing there."""
        if self._device.torch_device.type != "cpu":
            return network(tensor)
        return _together([network(one) for one in torch.split(tensor, 1)])

    def _noise(self, shape: torch.Size, generators: list[torch.Generator]) -> torch.Tensor:
        noise: torch.Tensor = randn_tensor(
            shape, generator=generators, device=self._device.torch_device, dtype=self._dtype
        )
        return noise

    def _make_schedule(self, num_inference_steps: int) -> tuple[Any, torch.Tensor]:
        """Return the mode's scheduler, set to a number of steps, and its timesteps on the device."""
        scheduler = copy.copy(self._pipe.scheduler)
        scheduler.set_timesteps(num_inference_steps)
        return scheduler, scheduler.timesteps.to(self._device.torch_device)

    def _make_time_ids(self, width: int, height: int, pictures: int) -> torch.Tensor:
        """Return SDXL's conditions on size: the original size, the crop's corner and the size of the picture."""
        ids = [height, width, 0, 0, height, width]
        return torch.tensor([ids] * pictures, dtype=self._dtype, device=self._device.torch_device)


def _together(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def check_alive(pixels: torch.Tensor) -> None:
    """Check pictures of shape (batch, 3, height, width) as the VAE made them, before anything is clamped.

    NaN shows as black. On Ascend 310P and 910 it saturates to 0 on the way, so that what arrives is finite and the same
    everywhere; what a VAE really decodes never is, not even for a white picture.

    Raises:
        DeadPictureError: One has values that are no numbers, or one single value in each channel.
    """
    finite = torch.isfinite(pixels).all()
    constant = (pixels.amax(dim=(-2, -1)) == pixels.amin(dim=(-2, -1))).all(dim=-1).any()
    is_finite, is_constant = torch.stack((finite, constant)).tolist()  # one wait for the device
    if not is_finite:
        raise DeadPictureError("The model's output is no picture: it has values that are no numbers.")
    if is_constant:
        raise DeadPictureError("The model's output is no picture: every pixel has the same value.")
