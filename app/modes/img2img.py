"""Image to image: a picture from a prompt and a picture to start from."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.images.decoding import decode_image
from app.images.sizes import Size
from app.modes.fields import (
    GuidanceScale,
    NegativePrompt,
    NumImages,
    Prompt,
    Seed,
    Side,
    Steps,
    Strength,
    Uploads,
    check_effective_steps,
    check_seed_range,
    check_size_complete,
    params_of,
)
from app.modes.prompt_fields import PromptModeField, PromptSyntaxField, check_emphasis
from app.pipelines.base import GenerationParams, Mode
from app.pipelines.prompt_options import PromptOptions
from app.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PictureParams(GenerationParams):
    """One picture to be made from an RGB picture, `start`, whose size (sides multiples of 8) it has."""

    strength: float

    @property
    @abstractmethod
    def start(self) -> Image.Image: ...

    @property
    def width(self) -> int:
        return self.start.width

    @property
    def height(self) -> int:
        return self.start.height


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Img2ImgParams(PictureParams):
    """One picture to be made from a prompt and a picture."""

    mode: ClassVar[Mode] = Mode.IMG2IMG

    image: Image.Image

    @property
    def start(self) -> Image.Image:
        return self.image

    @classmethod
    def sample(cls, size: tuple[int, int], *, prompt: str, seed: int) -> Self:
        image = Image.linear_gradient("L").resize(size).convert("RGB")
        return cls(prompt=prompt, seed=seed, num_inference_steps=2, strength=0.5, image=image)


class PictureRequest(BaseModel):
    """The fields that requests with a picture share, beside the picture."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={"dependentRequired": {"width": ["height"], "height": ["width"]}},
    )
    size_param: ClassVar[str] = "width"
    upload_params: ClassVar[Mapping[str, str]] = {}

    prompt: Prompt
    strength: Strength = 0.5
    num_inference_steps: Steps = 2
    seed: Seed | None = None
    num_images: NumImages = 1
    width: Annotated[
        Side | None,
        Field(description="Pixels, together with height; if omitted, the picture's aspect is kept, up to 32:1."),
    ] = None
    height: Annotated[Side | None, Field(description="Pixels, together with width.")] = None
    prompt_mode: PromptModeField = "cut"
    prompt_syntax: PromptSyntaxField = "plain"
    guidance_scale: GuidanceScale | None = None
    negative_prompt: NegativePrompt | None = None

    @model_validator(mode="after")
    def _check_fields_together(self) -> Self:
        check_seed_range(self.seed, self.num_images)
        check_emphasis(self.prompt, self.prompt_syntax)
        check_size_complete(self.width, self.height)
        check_effective_steps(self.num_inference_steps, self.strength)
        return self

    @property
    def prompt_options(self) -> PromptOptions:
        """How the prompt is read."""
        return PromptOptions(mode=self.prompt_mode, syntax=self.prompt_syntax)

    @property
    def chosen_size(self) -> Size | None:
        """The output's size, if the request names one."""
        return None if self.width is None or self.height is None else Size(self.width, self.height)


class Img2ImgRequest(PictureRequest):
    """The fields of an image-to-image request beside the picture."""

    def to_params(self, uploads: Uploads, settings: Settings) -> list[Img2ImgParams]:
        """Return one params object per picture, each starting from the upload `image`. Blocks.

        Raises:
            TurboError: The file is not a usable picture.
        """
        image = decode_image(uploads["image"](), self.chosen_size, settings)
        steps, strength = self.num_inference_steps, self.strength
        return params_of(self, Img2ImgParams, num_inference_steps=steps, strength=strength, image=image)
