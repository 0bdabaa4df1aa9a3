"""Text to image: a picture from a prompt alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, model_validator

from app.images.sizes import Size
from app.modes.fields import (
    GuidanceScale,
    NegativePrompt,
    NumImages,
    Prompt,
    Seed,
    Side,
    Steps,
    check_seed_range,
    seeds_from,
)
from app.modes.prompt_fields import PromptModeField, PromptSyntaxField, check_emphasis
from app.pipelines.base import GenerationParams, Mode
from app.pipelines.prompt_options import DEFAULT_PROMPT_OPTIONS, PromptOptions
from app.settings import DEFAULT_SIDE


@dataclass(frozen=True, slots=True, kw_only=True)
class Txt2ImgParams(GenerationParams):
    """One picture to be made from a prompt."""

    mode: ClassVar[Mode] = Mode.TXT2IMG

    width: int
    height: int

    @classmethod
    def sample(cls, size: tuple[int, int], *, prompt: str, seed: int) -> Self:
        return cls(prompt=prompt, seed=seed, num_inference_steps=1, width=size[0], height=size[1])


def txt2img_params(
    prompt: str,
    seeds: Iterable[int],
    *,
    steps: int,
    size: Size,
    options: PromptOptions = DEFAULT_PROMPT_OPTIONS,
) -> list[Txt2ImgParams]:
    """Return one params object per picture."""
    return [
        Txt2ImgParams(
            prompt=prompt,
            prompt_options=options,
            seed=seed,
            num_inference_steps=steps,
            width=size.width,
            height=size.height,
        )
        for seed in seeds
    ]


class Txt2ImgRequest(BaseModel):
    """The body of `POST /txt2img`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    size_param: ClassVar[str] = "width"

    prompt: Prompt
    seed: Seed | None = None
    num_inference_steps: Steps = 1
    width: Side = DEFAULT_SIDE
    height: Side = DEFAULT_SIDE
    num_images: NumImages = 1
    prompt_mode: PromptModeField = "cut"
    prompt_syntax: PromptSyntaxField = "plain"
    guidance_scale: GuidanceScale | None = None
    negative_prompt: NegativePrompt | None = None

    @model_validator(mode="after")
    def _check_fields_together(self) -> Self:
        check_seed_range(self.seed, self.num_images)
        check_emphasis(self.prompt, self.prompt_syntax)
        return self

    @property
    def chosen_size(self) -> Size:
        return Size(self.width, self.height)

    def to_params(self) -> list[Txt2ImgParams]:
        seeds = seeds_from(self.seed, self.num_images)
        options = PromptOptions(mode=self.prompt_mode, syntax=self.prompt_syntax)
        steps, size = self.num_inference_steps, self.chosen_size
        return txt2img_params(self.prompt, seeds, steps=steps, size=size, options=options)
