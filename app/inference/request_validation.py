"""The fields of a request, their rules and their params, for every API and the command line."""

import math
import secrets
from collections.abc import Iterable
from typing import Annotated, ClassVar, LiteralString, Self, TypeVar

from PIL import Image
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from app.images.sizes import Size
from app.inference.prompt_fields import PromptModeField, PromptSyntaxField, check_emphasis
from app.pipelines.base import Img2ImgParams, Txt2ImgParams, effective_img2img_steps
from app.pipelines.prompt_options import DEFAULT_PROMPT_OPTIONS, PromptOptions
from app.settings import DEFAULT_SIDE, MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE

T = TypeVar("T")

MAX_SEED = 2**32 - 1
"""Largest seed that every common tool accepts."""

MAX_PROMPT_CHARACTERS = 2000
MAX_STEPS = 4


def _unused(code: LiteralString, reason: LiteralString) -> AfterValidator:
    """Return the validator of a field that must be empty or 0."""

    def check(value: T) -> T:
        if value:
            raise PydanticCustomError(code, reason)
        return value

    return AfterValidator(check)


def _whole(value: object) -> object:
    """Accept 512.0 as 512, as JSON Schema does; reject 1_0, which Python reads as 10."""
    if isinstance(value, str) and "_" in value:
        raise PydanticCustomError("int_parsing", "Input should be a valid integer")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _no_underscore(value: object) -> object:
    if isinstance(value, str) and "_" in value:
        raise PydanticCustomError("float_parsing", "Input should be a valid number")
    return value


WHOLE = BeforeValidator(_whole)
"""Validator of every integer field; see `_whole`."""

Prompt = Annotated[
    str,
    Field(
        max_length=MAX_PROMPT_CHARACTERS,
        # The model ignores control characters, and a PNG's text cannot contain U+0000.
        pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$",
        description="What to draw. CLIP reads 77 tokens; a longer prompt is cut, and the answer reports it.",
        examples=["A cinematic shot of a baby racoon wearing an intricate italian priest robe."],
    ),
]
Seed = Annotated[
    int,
    Field(ge=0, le=MAX_SEED, description="Seed of the first picture; drawn and reported if omitted.", examples=[42]),
    WHOLE,
]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS, description="Denoising steps. One is enough, four are better."), WHOLE]
Strength = Annotated[
    float,
    Field(
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="How much may change. int(num_inference_steps * strength) steps run, and must be at least 1.",
    ),
    BeforeValidator(_no_underscore),
]
MAX_IMAGES_OF_CLIENTS = 10
"""Pictures per request on the routes for other programs' clients: as many as OpenAI's API allows."""

NumImages = Annotated[int, Field(ge=1, le=4, description="Pictures to make, with seed, seed + 1, ..."), WHOLE]
ManyImages = Annotated[
    int, Field(ge=1, le=MAX_IMAGES_OF_CLIENTS, description="Pictures to make, with seed, seed + 1, ..."), WHOLE
]
Side = Annotated[
    int,
    Field(ge=MIN_SIDE, le=MAX_SIDE, multiple_of=SIDE_MULTIPLE, description="Pixels; 512 is best."),
    WHOLE,
]
GuidanceScale = Annotated[
    float,
    _unused(
        "guidance_unused",
        "SDXL-Turbo does not use guidance: it is trained without. Omit guidance_scale or send 0.",
    ),
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": 0, "description": "SDXL-Turbo does not use guidance."}),
]
NegativePrompt = Annotated[
    str,
    _unused(
        "negative_prompt_unused",
        "SDXL-Turbo does not use a negative prompt: that needs guidance, which the model is trained without.",
    ),
    WithJsonSchema({"type": "string", "maxLength": 0, "description": "SDXL-Turbo does not use a negative prompt."}),
]


# If a rule spans several fields, `param` in the error's context names the field to change.


def check_seed_range(seed: int | None, num_images: int, *, name: str = "num_images") -> None:
    """Check that every picture has a seed. `name` is the request's field with the number of pictures.

    Raises:
        PydanticCustomError: The last seed is over the maximum.
    """
    if seed is not None and seed + num_images - 1 > MAX_SEED:
        raise PydanticCustomError(
            "seed_range",
            "The pictures use seed to seed + {name} - 1, which must not pass {max_seed}.",
            {"max_seed": MAX_SEED, "name": name, "param": "seed"},
        )


def check_effective_steps(
    num_inference_steps: int,
    strength: float,
    *,
    steps_name: str = "num_inference_steps",
    strength_name: str = "strength",
) -> None:
    """Check the rule of the SDXL-Turbo model card: num_inference_steps * strength >= 1. The names are the request's.

    Raises:
        PydanticCustomError: No step would run. The text states the smallest strength that works.
    """
    if effective_img2img_steps(num_inference_steps, strength) < 1:
        raise PydanticCustomError(
            "strength_too_small",
            "int({steps_name} * {param}) steps run, and that must be at least 1. "
            "With {steps} steps the smallest strength that works is {smallest}.",
            {
                "param": strength_name,
                "steps_name": steps_name,
                "steps": num_inference_steps,
                "smallest": smallest_strength(num_inference_steps),
            },
        )


def smallest_strength(num_inference_steps: int) -> float:
    """Return the smallest strength of at most four decimals with which one step runs."""
    return math.ceil(10_000 / num_inference_steps) / 10_000


def seeds_from(seed: int | None, num_images: int) -> range:
    """Return one seed per picture; a missing first seed is drawn here."""
    first = secrets.randbelow(MAX_SEED - num_images + 2) if seed is None else seed
    return range(first, first + num_images)


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
            seed=seed,
            num_inference_steps=steps,
            width=size.width,
            height=size.height,
            prompt_options=options,
        )
        for seed in seeds
    ]


def img2img_params(
    prompt: str,
    seeds: Iterable[int],
    *,
    steps: int,
    strength: float,
    image: Image.Image,
    options: PromptOptions = DEFAULT_PROMPT_OPTIONS,
) -> list[Img2ImgParams]:
    """Return one params object per picture, each starting from `image` (RGB, of the output's size)."""
    return [
        Img2ImgParams(
            prompt=prompt,
            seed=seed,
            num_inference_steps=steps,
            strength=strength,
            image=image,
            prompt_options=options,
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


class Img2ImgRequest(BaseModel):
    """The fields of an image-to-image request beside the picture."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={"dependentRequired": {"width": ["height"], "height": ["width"]}},
    )
    size_param: ClassVar[str] = "width"

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
        if (self.width is None) != (self.height is None):
            raise PydanticCustomError(
                "size_incomplete",
                "Send both width and height, or neither.",
                {"param": "width" if self.width is None else "height"},
            )
        check_effective_steps(self.num_inference_steps, self.strength)
        return self

    @property
    def chosen_size(self) -> Size | None:
        """The output's size, if the request names one."""
        return None if self.width is None or self.height is None else Size(self.width, self.height)

    def to_params(self, image: Image.Image) -> list[Img2ImgParams]:
        """Return one params object per picture, each starting from `image` (RGB, of the output's size)."""
        seeds = seeds_from(self.seed, self.num_images)
        options = PromptOptions(mode=self.prompt_mode, syntax=self.prompt_syntax)
        steps, strength = self.num_inference_steps, self.strength
        return img2img_params(self.prompt, seeds, steps=steps, strength=strength, image=image, options=options)
