"""One mode of SDXL-Turbo: prompts and seeds in, pictures out, many at once."""

import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from app.errors import DeadPictureError, DeviceOutOfMemoryError
from app.pipelines.base import BatchKey, GenerationParams, PipelineImage
from app.pipelines.batch_sizes import BatchSizes
from app.pipelines.device import TorchDevice
from app.pipelines.device_errors import device_errors
from app.pipelines.host_memory import memory_bytes, return_freed_memory
from app.pipelines.networks.int8 import is_quantized
from app.pipelines.networks.plain import Networks
from app.pipelines.prompts import EncodedPrompt, PromptEncoder
from app.pipelines.schedule import Schedule
from app.pipelines.work import StageTimes

_LOGVAR = (-30.0, 20.0)
"""Bounds of the logarithm of the posterior's variance (DiagonalGaussianDistribution of diffusers)."""

_DRAWN = 128
"""Level of a mask from which latents are drawn: a half of white, as in diffusers' mask processor."""

_CHECKED_AT_START = 512 * 512
_NUMBERS_PER_PIXEL = 14
"""Numbers that a CPU holds for a pixel while the VAE decodes, for each channel of its outermost block. SDXL-Turbo's 128
channels in bf16 took 2.6 KB a pixel at 1536x1024 and 3.4 KB at 1792x1024 (peak of the process above its weights)."""


@dataclass(eq=False)
class SdxlTurboPipeline:
    """One mode of SDXL-Turbo, built from a diffusers pipeline's parts: diffusers' own call makes one prompt's pictures.

    `pipe` is the diffusers pipeline of the mode, such as StableDiffusionXLImg2ImgPipeline, already on `device`.
    """

    pipe: Any
    networks: Networks
    prompts: PromptEncoder
    device: TorchDevice
    batch_sizes: BatchSizes
    stage_times: StageTimes

    def __post_init__(self) -> None:
        # Read once: diffusers walks through all modules for it, which takes milliseconds.
        self._dtype: torch.dtype = self.pipe.unet.dtype
        self._vae_dtype: torch.dtype = self.pipe.vae.dtype
        vae = self.pipe.vae.config
        self._vae_channels: int = (vae.get("block_out_channels") or vae["decoder_block_out_channels"])[0]
        self._stages_s: dict[str, float] | None = None
        self._decoded = torch.empty(0)
        self._schedule = functools.cache(  # for each number of steps
            lambda steps: Schedule(self.pipe.scheduler, steps, self.device.torch_device)
        )
        self._time_ids = functools.lru_cache(64)(self._make_time_ids)  # each is a copy to the device

    def __call__(self, batch: Sequence[GenerationParams], /) -> list[PipelineImage]:
        parts = list(self.batch_sizes.split(batch))
        self._check_memory(batch[0].width * batch[0].height)
        try:
            with device_errors(self.device.torch_device), torch.inference_mode():
                return self._make(batch, parts)
        except Exception as error:
            self.device.expect(None)  # of an earlier part of the batch
            if isinstance(error, DeviceOutOfMemoryError):
                self.batch_sizes.fail(batch[0].batch_key, len(parts[0]))
            raise

    def batch_limit(self, key: BatchKey) -> int:
        return self.batch_sizes.limit(key)

    def _check_memory(self, pixels: int) -> None:
        """Check on a CPU that a picture larger than 512x512 has the memory that it takes.

        Without it, the kernel would end the process. A start has checked the memory of smaller pictures.

        Raises:
            DeviceOutOfMemoryError: The memory is short, also after freed memory was returned.
        """
        if self.device.torch_device.type != "cpu" or sys.platform != "linux" or pixels <= _CHECKED_AT_START:
            return
        needed = int(pixels * _NUMBERS_PER_PIXEL * self._vae_channels * self._vae_dtype.itemsize)
        if memory_bytes()[0] < needed:
            return_freed_memory()
            free, _ = memory_bytes()
            if free < needed:
                raise DeviceOutOfMemoryError(
                    f"A picture of this size takes {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free."
                )

    def _make(
        self, batch: Sequence[GenerationParams], parts: Sequence[Sequence[GenerationParams]]
    ) -> list[PipelineImage]:
        if self.batch_sizes.learning and len(batch) > 1:
            return self._learn(batch)
        if self.stage_times.learning and len(batch) == 1 and self._stages_s is None:
            with self.timed_stages() as stages_s:
                images = self._generate(batch)
            self.stage_times.learn(batch[0], stages_s)
            return images
        return [image for part in parts for image in self._generate(part)]

    @property
    def dtypes(self) -> dict[str, str]:
        """The number format of each model, such as `float16` or `int8`."""
        models = {name: getattr(self.pipe, name) for name in ("text_encoder", "text_encoder_2", "unet", "vae")}
        return {
            name: "int8" if is_quantized(model) else str(model.dtype).removeprefix("torch.")
            for name, model in models.items()
        }

    @contextmanager
    def timed_stages(self) -> Iterator[dict[str, float]]:
        """Collect the seconds of each stage in this context. Waits for the device around each, which slows calls."""
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
        self.device.synchronize()
        started = time.monotonic()
        yield
        self.device.synchronize()
        self._stages_s[name] = self._stages_s.get(name, 0.0) + time.monotonic() - started

    def _learn(self, batch: Sequence[GenerationParams]) -> list[PipelineImage]:
        """Check whether a batch of this size gives the same pictures as single calls, to the last bit."""
        alone, decoded = [], []
        for params in batch:
            alone += self._generate([params])
            decoded.append(self._decoded)
        self._generate(batch)
        # Not the finished pictures: rounding to 255 levels hides most differences.
        if torch.equal(torch.cat(decoded), self._decoded):
            self.batch_sizes.learn(batch[0].batch_key, len(batch))
        self._decoded = torch.empty(0)
        return alone

    def _generate(self, batch: Sequence[GenerationParams]) -> list[PipelineImage]:
        self.device.expect(None)  # a graph that fails in this call must be followed by a check of its own
        with self._stage("text"):
            prompts = [self.prompts(params.prompt, params.prompt_options) for params in batch]
        images: dict[int, PipelineImage] = {}
        lengths = [prompt.embeds.shape[1] for prompt in prompts]
        for places, is_usual in self.batch_sizes.split_by_length(batch, lengths):
            one_length = [batch[place] for place in places], [prompts[place] for place in places]
            images |= zip(places, self._paint(*one_length, is_usual=is_usual), strict=True)
        return [images[place] for place in range(len(batch))]

    def _paint(
        self, batch: Sequence[GenerationParams], prompts: Sequence[EncodedPrompt], *, is_usual: bool
    ) -> list[PipelineImage]:
        """Make the pictures of prompts of one length at once. `is_usual`: it is the warm-up's length."""
        # One generator for each picture: its noise must not depend on its neighbours. They are on the CPU, so that a
        # seed gives the same noise on every device.
        generators = [torch.Generator("cpu").manual_seed(params.seed) for params in batch]
        started = time.monotonic()  # without the text, which may come from the cache
        pixels = self._decode(self._denoise(batch, prompts, generators))
        if is_usual:  # longer prompts have no graphs
            self.batch_sizes.measure(batch[0].batch_key, len(batch), time.monotonic() - started)
        return [
            PipelineImage(pixels=picture, tokens=prompt.tokens, prompt_tokens=prompt.prompt_tokens)
            for picture, prompt in zip(pixels, prompts, strict=True)
        ]

    def _denoise(
        self, batch: Sequence[GenerationParams], prompts: Sequence[EncodedPrompt], generators: list[torch.Generator]
    ) -> Tensor:
        """Return latents of shape (batch, 4, height / 8, width / 8)."""
        first, pipe = batch[0], self.pipe
        schedule = self._schedule(first.num_inference_steps)
        begin = first.num_inference_steps - first.effective_steps
        conditions = (
            torch.cat([prompt.embeds for prompt in prompts]),
            torch.cat([prompt.pooled for prompt in prompts]),
            self._time_ids(first.width, first.height, len(batch)),
        )
        sides = (first.height // pipe.vae_scale_factor, first.width // pipe.vae_scale_factor)
        draw = partial(self._draw, generators, (1, pipe.unet.config.in_channels, *sides), self._dtype)
        start = None if first.start is None else self._encode(batch, generators)  # draws before the noise
        noise = draw()
        mask = None
        if start is not None and first.mask is not None:
            mask = self._mask(batch, generators)
            start = start.contiguous()  # the layout in which diffusers blends; on a CPU another one rounds differently
        if start is None or (mask is not None and first.strength == 1):
            latents = schedule.initial(noise)
        elif mask is None:
            latents = schedule.noised(start, noise, begin)
        else:
            latents = schedule.noised(self._hidden(batch, start, mask, noise), noise, begin)
        for step in range(begin, first.num_inference_steps):
            with self._stage("unet"):
                scaled = schedule.scaled(latents, step)
                predicted = self.networks.predict_noise(scaled, schedule.timesteps[step], *conditions)
            latents = schedule.after(step, latents, predicted, draw() if schedule.adds_noise(step) else None)
            if start is not None and mask is not None:
                is_last = step + 1 == first.num_inference_steps
                kept = start if is_last else schedule.noised(start, noise, step + 1)
                latents = (1 - mask) * kept + mask * latents
        return latents

    def _mask(self, batch: Sequence[GenerationParams], generators: Sequence[torch.Generator]) -> Tensor:
        """Return the masks of the pictures at the latents' size, of shape (batch, 1, height / 8, width / 8): 0 or 1.

        Also draw what diffusers draws at this point, when it encodes the rest of the picture for other UNets.
        """
        every = self.pipe.vae_scale_factor
        drawn = [np.asarray(params.mask)[::every, ::every] >= _DRAWN for params in batch]
        if not isinstance(self.pipe.vae, AutoencoderTiny):
            shape = (1, self.pipe.vae.config.latent_channels, *drawn[0].shape)
            for generator in generators:
                torch.randn(shape, generator=generator, dtype=self._vae_dtype)
        return self.device.receive(torch.from_numpy(np.stack(drawn)[:, None]).to(self._dtype))

    def _hidden(self, batch: Sequence[GenerationParams], start: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """Return the latents to start from, with noise where the mask draws, for the pictures that ask for it."""
        if not any(params.hides_masked for params in batch):
            return start
        hides = torch.tensor([params.hides_masked for params in batch], dtype=self._dtype)
        hidden = mask * self.device.receive(hides).view(-1, 1, 1, 1)
        return (1 - hidden) * start + hidden * noise

    def _draw(self, generators: Sequence[torch.Generator], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Draw noise of this shape for each picture, from its own generator on the host; return it on the device."""
        noise = [torch.randn(shape, generator=generator, dtype=dtype) for generator in generators]
        return self.device.receive(torch.cat(noise))

    def _encode(self, batch: Sequence[Any], generators: Sequence[torch.Generator]) -> Tensor:
        """Return the latents of the RGB pictures to start from, drawn from the VAE's posterior as diffusers does."""
        vae = self.pipe.vae
        pixels = torch.cat([self.pipe.image_processor.preprocess(params.start) for params in batch])
        with self._stage("vae encode"):
            encoded = self._by_picture(self.networks.encode, self.device.receive(pixels.to(self._vae_dtype)))
        if not isinstance(vae, AutoencoderTiny):
            mean, logvar = encoded.chunk(2, dim=1)
            deviation = logvar.clamp(*_LOGVAR).mul_(0.5).exp_()
            encoded = mean + deviation * self._draw(generators, (1, *mean.shape[1:]), encoded.dtype)
        latents: Tensor = (encoded * vae.config.scaling_factor).to(self._dtype)
        return latents

    def _decode(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        """Return the pictures of the latents, of shape (batch, height, width, 3).

        The host waits for the device once: the pictures, what `check_alive` needs, and the value of the device's next
        check arrive together.
        """
        vae = self.pipe.vae
        with self._stage("vae decode"):
            pixels = self._by_picture(self.networks.decode, latents.to(self._vae_dtype) / vae.config.scaling_factor)
        self._decoded = pixels if self.batch_sizes.learning else self._decoded
        levels = pixels.float().div(2).add_(0.5).clamp_(0, 1).mul_(255).round_().to(torch.uint8).permute(0, 2, 3, 1)
        numbers = torch.cat([extremes(pixels), self.device.begin_check()])
        arrived = torch.cat([levels.flatten(), numbers.view(torch.uint8)]).cpu().numpy()
        pictures, rest = np.split(arrived, [levels.numel()])
        *found, check = rest.view(np.float32).tolist()
        self.device.expect(check)
        check_alive(found)
        made: npt.NDArray[np.uint8] = pictures.reshape(levels.shape)
        return made

    def _by_picture(self, network: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
        """Call the VAE; on the CPU with one picture at a time, because a batch saves nothing there."""
        if self.device.torch_device.type != "cpu":
            return network(tensor)
        return torch.cat([network(one) for one in torch.split(tensor, 1)])

    def _make_time_ids(self, width: int, height: int, pictures: int) -> Tensor:
        """Return SDXL's size conditions: the original size, the crop's corner and the size of the picture."""
        ids = [height, width, 0, 0, height, width]
        return torch.tensor([ids] * pictures, dtype=self._dtype, device=self.device.torch_device)


def extremes(pixels: Tensor) -> Tensor:
    """Return what tells a dead picture, from the VAE's output of shape (batch, 3, height, width), before any clamping.

    The result has one dimension, in fp32: the least and the largest value of each channel, then the sum of all values.
    """
    sides = (-2, -1)
    return torch.cat(
        [pixels.amin(sides).flatten(), pixels.amax(sides).flatten(), pixels.sum(dtype=torch.float32)[None]]
    ).float()


def check_alive(found: Sequence[float], *, channels: int = 3) -> None:
    """Check the `extremes` of pictures.

    NaN would turn black; a sum with NaN or infinity is not finite. On Ascend 310P and 910 NaN saturates to 0 on the
    way, and the output is finite and constant. A VAE's real output is never constant, not even for a white picture.

    Raises:
        DeadPictureError: A picture has values that are not finite, or one single value in each channel.
    """
    if not all(map(math.isfinite, found)):
        raise DeadPictureError("The model's output is not a picture: some values are not finite numbers.")
    least, most = np.reshape(found[:-1], (2, -1, channels))
    if (least == most).all(axis=-1).any():
        raise DeadPictureError("The model's output is not a picture: every pixel has the same value.")
