"""The seam: what the service asks of a pipeline, in words that need no torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

MAX_PROMPT_TOKENS = 77
"""Tokens that CLIP's text encoders read, start and end marks included (openai/clip-vit-large-patch14 config)."""


class Mode(StrEnum):
    """What a picture is made from."""

    TXT2IMG = "txt2img"
    IMG2IMG = "img2img"


@dataclass(frozen=True, slots=True)
class BatchKey:
    """What pictures must have in common to be made in one call. Sizes are in pixels."""

    mode: Mode
    width: int
    height: int
    num_inference_steps: int
    strength: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Txt2ImgParams:
    """One picture to be made from a prompt. Width and height are in pixels, multiples of 8."""

    mode: ClassVar[Mode] = Mode.TXT2IMG

    prompt: str
    seed: int
    num_inference_steps: int
    width: int
    height: int

    @property
    def effective_steps(self) -> int:
        """Denoising steps that really run."""
        return self.num_inference_steps

    @property
    def batch_key(self) -> BatchKey:
        """What this picture has to share with those that are made in the same call."""
        return BatchKey(self.mode, self.width, self.height, self.num_inference_steps)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Img2ImgParams:
    """One picture to be made from a prompt and an RGB picture of the output's size (sides multiples of 8)."""

    mode: ClassVar[Mode] = Mode.IMG2IMG

    prompt: str
    seed: int
    num_inference_steps: int
    strength: float
    image: Image.Image

    @property
    def width(self) -> int:
        """Width of the output in pixels."""
        return self.image.width

    @property
    def height(self) -> int:
        """Height of the output in pixels."""
        return self.image.height

    @property
    def effective_steps(self) -> int:
        """Denoising steps that really run; the rule is `effective_img2img_steps`."""
        return effective_img2img_steps(self.num_inference_steps, self.strength)

    @property
    def batch_key(self) -> BatchKey:
        """What this picture has to share with those that are made in the same call."""
        return BatchKey(self.mode, self.width, self.height, self.num_inference_steps, self.strength)


GenerationParams = Txt2ImgParams | Img2ImgParams


def effective_img2img_steps(num_inference_steps: int, strength: float) -> int:
    """Steps that image to image runs: int(num_inference_steps * strength).

    Source: the SDXL-Turbo model card, and `get_timesteps` of diffusers' StableDiffusionXLImg2ImgPipeline.
    """
    return int(num_inference_steps * strength)


def buckets(max_batch: int) -> list[int]:
    """Return the sizes of batches that there are graphs of, and that are tried and measured: powers of two."""
    return [1 << exponent for exponent in range(max_batch.bit_length())]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PipelineImage:
    """One finished picture.

    `pixels` has the shape (height, width, 3), red, green and blue from 0 to 255. `prompt_tokens` counts the CLIP tokens
    of the prompt that were used, start and end marks included.
    """

    pixels: npt.NDArray[np.uint8]
    prompt_tokens: int
    prompt_truncated: bool


Watermark = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]
"""Works a mark into a picture's pixels, of shape (height, width, 3). Blocks; any thread may call it, many at once."""


class Pipeline(Protocol):
    """One warm pipeline of one mode. Calls block, and come one at a time from the device thread alone."""

    def __call__(self, batch: Sequence[GenerationParams], /) -> list[PipelineImage]:
        """Make one picture for each member of the batch, in its order. All have the same `batch_key`.

        A picture depends on its own params alone, never on its neighbours; to the last bit, or within 1/255 where the
        pipeline was told that this is enough.

        Raises:
            DeviceOutOfMemoryError: The device has no memory for this call; the next may succeed.
            DeviceLostError: The device cannot be trusted any more.
            DeadPictureError: What the model made is no picture.
        """

    def batch_limit(self, key: BatchKey) -> int:
        """Return how many pictures of a kind are worth making in one call, at least 1. Never blocks, on any thread."""


class Device(Protocol):
    """The device behind the pipelines. Calls block, and come from the device thread alone."""

    def check(self) -> None:
        """Prove that the device still computes: have it work out a value that is known here.

        Raises:
            DeviceLostError: The value is wrong, or the device raised.
            DeviceOutOfMemoryError: The device has no memory even for this.
        """

    def free_memory(self) -> None:
        """Give back the memory that is held and not in use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStatistics:
    """How often a cache was asked for what it had and had not, and the bytes that it holds."""

    hits: int = 0
    misses: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedPipelines:
    """What a loader hands over: a pipeline per mode, their device, and what health checks and logs say of it.

    Every mode is warmed up with as many pictures in a call as each of `warm_up_batches` says; such a call may take
    `warm_up_limits` times the hang limit a picture, as it may make pictures twice, or compile. Where
    `first_call_is_slow`, one picture more is made and measured. `on_warm` is called once, on the device thread, when
    every mode is warm. `work` tells the work of a picture in a unit of the loader's own, so
    that the time of one can be told from that of another. `work` and `prompt_cache` may be asked from any thread.
    """

    by_mode: Mapping[Mode, Pipeline]
    device: Device
    model: str
    device_name: str
    dtype: str
    warm_up_batches: Sequence[int] = (1,)
    warm_up_limits: int = 2
    first_call_is_slow: bool = False
    on_warm: Callable[[], None] = lambda: None
    work: Callable[[GenerationParams], float] = lambda _: 1.0
    prompt_cache: Callable[[], CacheStatistics] = CacheStatistics
    watermark: Watermark | None = None


class PipelineLoader(Protocol):
    """Opens the device and loads the pipelines. Blocks; called once, on the device thread."""

    def __call__(self) -> LoadedPipelines:
        """Load every mode.

        Raises:
            StartError: The weights or the device cannot be used; the text says what to do.
        """
