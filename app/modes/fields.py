"""The fields that requests of several modes have, and their rules, for every API and the command line."""

import math
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, LiteralString, Protocol, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from app.pipelines.base import GenerationParams, effective_steps
from app.pipelines.prompt_options import PromptOptions
from app.settings import DEFAULT_MAX_STEPS, MAX_SIDE, MIN_SIDE, MOST_STEPS, SIDE_MULTIPLE

Uploads = Mapping[str, Callable[[], bytes | memoryview]]
"""A request's files by the names of their fields. Each function returns a file's bytes and releases them. It is called
once, on a codec thread, and may block."""

T = TypeVar("T")
Params = TypeVar("Params", bound=GenerationParams)

MAX_SEED = 2**32 - 1
"""Largest seed that every common tool accepts."""

MAX_PROMPT_CHARACTERS = 2000


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


def _at_most(value: int, info: ValidationInfo) -> int:
    """Check the steps against `TURBO_MAX_STEPS`, which the validation's context has."""
    if value > (most := (info.context or {}).get("max_steps", DEFAULT_MAX_STEPS)):
        raise PydanticCustomError("less_than_equal", "Input should be less than or equal to {le}", {"le": most})
    return value


def context_of(max_steps: int) -> dict[str, Any]:
    """Return the context that wire models are validated with. Without one, `DEFAULT_MAX_STEPS` steps are allowed."""
    return {"max_steps": max_steps}


def describe_max_steps(schema: Any, max_steps: int) -> None:
    """Put `TURBO_MAX_STEPS` into a JSON schema, in place, wherever it has a field with a number of steps."""
    if isinstance(schema, list):
        for part in schema:
            describe_max_steps(part, max_steps)
    elif isinstance(schema, dict):
        if schema.get("name") in _STEPS_NAMES and "schema" in schema:  # a parameter of a query
            schema = {schema["name"]: schema["schema"]}
        for name, part in schema.items():
            if name in _STEPS_NAMES and isinstance(part, dict):
                for described in (part, *part.get("anyOf", ())):
                    if described.get("maximum") == MOST_STEPS:
                        described["maximum"] = max_steps
            else:
                describe_max_steps(part, max_steps)


_STEPS_NAMES = ("num_inference_steps", "steps")
"""Fields with a number of steps."""

Steps = Annotated[
    int,
    Field(
        ge=1,
        description="Denoising steps. One is enough, four are better.",
        json_schema_extra={"maximum": MOST_STEPS},  # a fault names the operator's limit
    ),
    AfterValidator(_at_most),
    WHOLE,
]
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


def check_size_complete(width: int | None, height: int | None) -> None:
    """Check that a request has both sides or neither.

    Raises:
        PydanticCustomError: One is missing.
    """
    if (width is None) != (height is None):
        raise PydanticCustomError(
            "size_incomplete",
            "Send both width and height, or neither.",
            {"param": "width" if width is None else "height"},
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
    if effective_steps(num_inference_steps, strength) < 1:
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


class PictureOrder(Protocol):
    """What the requests of all modes and APIs have."""

    @property
    def prompt(self) -> str: ...

    @property
    def prompt_options(self) -> PromptOptions: ...

    @property
    def seed(self) -> int | None: ...

    @property
    def num_images(self) -> int: ...


def params_of(request: PictureOrder, make: Callable[..., Params], **fields: object) -> list[Params]:
    """Return one params object per picture: `make` takes the prompt, a seed and the `fields`.

    A missing first seed is drawn here.
    """
    make = partial(make, prompt=request.prompt, prompt_options=request.prompt_options, **fields)
    return [make(seed=seed) for seed in seeds_from(request.seed, request.num_images)]
