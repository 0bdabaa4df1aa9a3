"""The seam: what the service asks of a pipeline, in types that need no torch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from app.pipelines.prompt_options import DEFAULT_PROMPT_OPTIONS, PromptOptions

MAX_PROMPT_TOKENS = 77
"""Tokens that CLIP's text encoders read, start and end marks included (openai/clip-vit-large-patch14 config)."""


class Mode(StrEnum):
    """The ways to make a picture; `app/modes/` has a module for each mode."""

    TXT2IMG = "txt2img"
    IMG2IMG = "img2img"
    INPAINT = "inpaint"


Kind = tuple[Mode, int, int, int]
"""What the seconds of a picture depend on: mode, width and height in pixels, effective steps."""


@dataclass(frozen=True, slots=True)
class BatchKey:
    """What pictures must have in common to be made in one call. Sizes are in pixels."""

    mode: Mode
    width: int
    height: int
    num_inference_steps: int
    strength: float | None = None

    @property
    def kind(self) -> Kind:
        steps = self.num_inference_steps
        if self.strength is not None:
            steps = effective_steps(steps, self.strength)
        return self.mode, self.width, self.height, steps


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GenerationParams(ABC):
    """One picture to be made. Each mode has a subclass, in `app/modes/`.

    A pipeline makes a picture of `width` x `height` pixels, both multiples of 8. `finish` makes the request's picture
    of it, which may have another size.
    """

    mode: ClassVar[Mode]
    is_composite: ClassVar[bool] = False
    """Whether a part of the finished picture comes from the upload."""

    prompt: str
    seed: int
    num_inference_steps: int
    prompt_options: PromptOptions = DEFAULT_PROMPT_OPTIONS

    @property
    @abstractmethod
    def width(self) -> int: ...

    @property
    @abstractmethod
    def height(self) -> int: ...

    @property
    def strength(self) -> float | None:
        """The share of the steps that run, from a picture on; None if all run, from noise."""
        return None

    @property
    def start(self) -> Image.Image | None:
        """The RGB picture of this size to start from; None to start from noise."""
        return None

    @property
    def mask(self) -> Image.Image | None:
        """A picture of this size in mode L: where it is 128 or more is drawn, the rest stays as in `start`.

        None draws everything.
        """
        return None

    @property
    def hides_masked(self) -> bool:
        """Whether noise replaces what `start` shows where the mask draws."""
        return False

    @property
    def finished_size(self) -> tuple[int, int]:
        """Width and height of the finished picture."""
        return self.width, self.height

    def finish(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return the finished picture, of shape (height, width, 3), from the pipeline's. Blocks, on any thread."""
        return pixels

    @property
    def metadata(self) -> Mapping[str, object]:
        """Further parameters for the picture's file, with the names that stable-diffusion-webui gives them."""
        return {} if self.strength is None else {"Denoising strength": self.strength}

    @property
    def effective_steps(self) -> int:
        return self.batch_key.kind[-1]

    @property
    def batch_key(self) -> BatchKey:
        return BatchKey(self.mode, self.width, self.height, self.num_inference_steps, self.strength)

    @classmethod
    @abstractmethod
    def sample(cls, size: tuple[int, int], *, prompt: str, seed: int) -> Self:
        """Return a picture that takes one step, to warm up, check and measure pipelines."""


def effective_steps(num_inference_steps: int, strength: float) -> int:
    """Return the denoising steps that run from a picture on.

    Source: the SDXL-Turbo model card, and `get_timesteps` of diffusers' StableDiffusionXLImg2ImgPipeline.
    """
    return int(num_inference_steps * strength)


def buckets(max_batch: int) -> list[int]:
    """Return the batch sizes that are compiled, tried and measured: the powers of two up to `max_batch`."""
    return [1 << exponent for exponent in range(max_batch.bit_length())]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PipelineImage:
    """One finished picture.

    `pixels` has the shape (height, width, 3), red, green and blue from 0 to 255. `tokens` counts the CLIP tokens of the
    whole prompt, `prompt_tokens` those that were used, both with the start and end marks of the used windows.
    """

    pixels: npt.NDArray[np.uint8]
    tokens: int
    prompt_tokens: int

    @property
    def prompt_truncated(self) -> bool:
        return self.tokens > self.prompt_tokens


Watermark = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]
"""Embeds a mark in a picture's pixels, of shape (height, width, 3). Blocks; threads may call it concurrently."""


class Pipeline(Protocol):
    """One warm pipeline of one mode. Calls block; only the device thread calls it, one call at a time."""

    def __call__(self, batch: Sequence[GenerationParams], /) -> list[PipelineImage]:
        """Make one picture for each member of the batch, in its order. All have the same `batch_key`.

        A picture depends on its own params alone, never on its neighbours: to the last bit, or within 1/255 if the
        pipeline was loaded with that tolerance.

        Raises:
            DeviceOutOfMemoryError: The device has no memory for this call; the next may succeed.
            DeviceLostError: The device cannot be trusted any more.
            DeadPictureError: The model's output is not a picture.
        """

    def batch_limit(self, key: BatchKey) -> int:
        """Return how many pictures of a kind are worth making in one call, at least 1. Never blocks, on any thread."""


class Device(Protocol):
    """The device behind the pipelines. Calls block; only the device thread makes them."""

    def check(self) -> None:
        """Check that the device still computes: it must return a value that is known here.

        Raises:
            DeviceLostError: The value is wrong, or the device raised.
            DeviceOutOfMemoryError: The device has no memory even for this.
        """

    def free_memory(self) -> None:
        """Give back the memory that is held and not in use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStatistics:
    """Hits and misses of a cache, and its size."""

    hits: int = 0
    misses: int = 0
    size_bytes: int = 0


class Lora(NamedTuple):
    """A LoRA that is fused into the model's weights: its name as clients see it, and its weight."""

    name: str
    weight: float

    def __str__(self) -> str:
        return f"{self.name}:{self.weight:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedPipelines:
    """The result of a loader: a pipeline per mode, their device, and facts for health checks and logs.

    Attributes:
        dtype_reason: Why the weights have this number format, in words.
        vae: The VAE that replaces the model's own, if any. Clients see this name and the model's.
        loras: The LoRAs that are fused into the weights.
        warm_up_batches: Batch sizes to warm up every mode with.
        warm_up_limits: Hang limits per picture that a warm-up call may take: it may make pictures twice, or compile.
        first_call_is_slow: Whether the warm-up must make one more picture to measure.
        on_warm: To be called once, on the device thread, when every mode is warm.
        weights_sha256: SHA-256 over the weights' files, configs included; empty for a fake.
        computed_by: The device, and what else decides its results' bits.
        work: The work of a picture in the loader's own unit, to compare pictures. For any thread, as `prompt_cache`.
        fused_operators: Names of the device's fused operators that are used.
        unused_operators: Names of those that are wanted but not used, each with the reason.
    """

    by_mode: Mapping[Mode, Pipeline]
    device: Device
    model: str
    device_name: str
    dtype: str
    dtype_reason: str = ""
    vae: str | None = None
    loras: Sequence[Lora] = ()
    warm_up_batches: Sequence[int] = (1,)
    warm_up_limits: int = 2
    first_call_is_slow: bool = False
    on_warm: Callable[[], None] = lambda: None
    work: Callable[[GenerationParams], float] = lambda _: 1.0
    prompt_cache: Callable[[], CacheStatistics] = CacheStatistics
    watermark: Watermark | None = None
    weights_sha256: str = ""
    computed_by: str = ""
    fused_operators: Sequence[str] = ()
    unused_operators: Mapping[str, str] = field(default_factory=dict)


PipelineLoader = Callable[[], LoadedPipelines]
"""Opens the device and loads every mode. Blocks; called once, on the device thread.

Raises:
    StartError: The weights or the device cannot be used; the text says what to do.
"""
