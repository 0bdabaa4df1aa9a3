"""Text to image: a picture from a prompt alone."""

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
    params_of,
)
from app.modes.prompt_fields import PromptModeField, PromptSyntaxField, check_emphasis
from app.pipelines.base import GenerationParams, Mode
from app.pipelines.prompt_options import PromptOptions
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
    def prompt_options(self) -> PromptOptions:
        """How the prompt is read."""
        return PromptOptions(mode=self.prompt_mode, syntax=self.prompt_syntax)

    @property
    def chosen_size(self) -> Size:
        return Size(self.width, self.height)

    def to_params(self) -> list[Txt2ImgParams]:
        return params_of(
            self,
            Txt2ImgParams,
            num_inference_steps=self.num_inference_steps,
            width=self.width,
            height=self.height,
        )
