"""The seam: what the service asks of a pipeline, in words that need no torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Protocol

from PIL import Image

MAX_PROMPT_TOKENS = 77
"""Tokens that CLIP's text encoders read, start and end marks included (openai/clip-vit-large-patch14 config)."""


class Mode(StrEnum):
    """What a picture is made from."""

    TXT2IMG = "txt2img"
    IMG2IMG = "img2img"


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


GenerationParams = Txt2ImgParams | Img2ImgParams


def effective_img2img_steps(num_inference_steps: int, strength: float) -> int:
    """Steps that image to image runs: int(num_inference_steps * strength).

    Source: the SDXL-Turbo model card, and `get_timesteps` of diffusers' StableDiffusionXLImg2ImgPipeline.
    """
    return int(num_inference_steps * strength)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PipelineImage:
    """One finished picture: RGB, 8 bits a channel, of the size that the params name.

    `prompt_tokens` counts the CLIP tokens of the prompt that were used, start and end marks included.
    """

    image: Image.Image
    prompt_tokens: int
    prompt_truncated: bool


class Pipeline(Protocol):
    """One warm pipeline of one mode. Calls block, and come one at a time from the device thread alone."""

    def __call__(self, batch: Sequence[GenerationParams], /) -> list[PipelineImage]:
        """Make one picture for each member of the batch, in its order.

        A picture depends on its own params alone, never on its neighbours.

        Raises:
            DeviceOutOfMemoryError: The device has no memory for this call; the next may succeed.
            DeviceLostError: The device cannot be trusted any more.
            DeadPictureError: What the model made is no picture.
        """


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
class LoadedPipelines:
    """What a loader hands over: a pipeline per mode, their device, and what health checks and logs say of it.

    `on_warm` is called once, on the device thread, when every mode is warm.
    """

    by_mode: Mapping[Mode, Pipeline]
    device: Device
    model: str
    device_name: str
    dtype: str
    on_warm: Callable[[], None] = lambda: None


class PipelineLoader(Protocol):
    """Opens the device and loads the pipelines. Blocks; called once, on the device thread."""

    def __call__(self) -> LoadedPipelines:
        """Load every mode.

        Raises:
            StartError: The weights or the device cannot be used; the text says what to do.
        """
