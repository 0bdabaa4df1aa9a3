"""Wire models of OpenAI's Images API, as its SDKs send and read them, and what SDXL-Turbo needs beside.

Source: `openai.types` of the openai package 3.54 (images, models). Its SDKs send nothing that their caller leaves out,
and null for what is set to None; so every parameter may be null.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self

from PIL import Image
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from app.api.forms import Upload
from app.images.sizes import Size
from app.inference.requests import (
    WHOLE,
    GuidanceScale,
    NegativePrompt,
    NumImages,
    Prompt,
    Seed,
    Steps,
    Strength,
    check_effective_steps,
    check_seed_range,
    img2img_params,
    txt2img_params,
)
from app.pipelines.base import Img2ImgParams, Txt2ImgParams
from app.settings import DEFAULT_SIDE, MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE, parse_sizes

_AUTO = "auto"

_UNUSED: Mapping[str, str] = MappingProxyType(
    {
        "complexity": "Pictures are made of pixels, not drawn as SVG.",
        "frame_count": "Pictures are still: there are no frames.",
        "frame_duration_ms": "Pictures are still: there are no frames.",
        "input_fidelity": "Set strength instead: the lower, the more of the picture stays.",
        "markup": "SDXL-Turbo changes the whole picture: there is nothing to mark.",
        "mask": "SDXL-Turbo changes the whole picture: there is no mask.",
        "moderation": "Nothing is moderated here, and so not less or more strictly either.",
        "style": "SDXL-Turbo has no styles to choose from: write the style into the prompt.",
        "svg": "Pictures are made of pixels, not drawn as SVG.",
    }
)
"""Parameters that SDXL-Turbo cannot honour, with the reason."""

_UNUSED_VALUES: Mapping[str, tuple[frozenset[str], str]] = MappingProxyType(
    {
        "background": (frozenset({_AUTO, "opaque"}), "SDXL-Turbo's pictures are opaque."),
        "output_format": (frozenset({"png", "webp", "jpeg"}), "The formats are png, webp and jpeg."),
        "quality": (frozenset({_AUTO}), "There is one quality; num_inference_steps, 1 to 4, is what changes it."),
        "response_format": (frozenset({"b64_json"}), "No picture is kept that a URL could lead to: ask for b64_json."),
    }
)
"""The values that can be honoured, of parameters that have others, and why not those."""


def _check_size(value: str) -> str:
    if value != _AUTO and not _is_size(value):
        raise PydanticCustomError(
            "size_parsing",
            "The size is auto, or WIDTHxHEIGHT with sides that are multiples of {multiple} from {least} to {most}.",
            {"multiple": SIDE_MULTIPLE, "least": MIN_SIDE, "most": MAX_SIDE},
        )
    return value


def _is_size(value: str) -> bool:
    try:
        return value == str(_parsed(value))
    except ValueError:
        return False


def _parsed(size: str) -> Size:
    return Size(*parse_sizes(size)[0])


_SizeName = Annotated[
    str,
    AfterValidator(_check_size),
    Field(
        description="WIDTHxHEIGHT in pixels, sides multiples of 8; auto is 512x512, or an edited picture's own aspect.",
        examples=["512x512"],
        # Sides that are multiples of 8, as far as a pattern may be read; the bounds of their values stand above.
        json_schema_extra={"pattern": r"^(auto|\d{2,4}x\d{2,4})$"},
    ),
]
_Identifier = Annotated[
    str, Field(max_length=256, description="Written into the request's log line, and used for nothing else.")
]


class _ImagesRequest(BaseModel):
    """What generations and edits have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    size_param: ClassVar[str] = "size"

    prompt: Prompt
    model: Annotated[
        str | None, Field(max_length=256, description="The model that `GET /v1/models` names, or left out.")
    ] = None
    n: Annotated[NumImages | None, Field(description="Pictures to make; 1 if left out.")] = None
    size: _SizeName | None = None
    response_format: Literal["b64_json"] | None = None
    output_format: Annotated[
        Literal["png", "webp", "jpeg"] | None, Field(description="The files' format; png if left out.")
    ] = None
    output_compression: Annotated[
        Annotated[int, Field(ge=0, le=100), WHOLE] | None,
        Field(description="How good WebP and JPEG are; 90 if left out. PNG loses nothing."),
    ] = None
    stream: Annotated[bool | None, Field(description="Answer with one event for each picture.")] = None
    partial_images: Annotated[
        Annotated[int, Field(ge=0, le=3), WHOLE] | None,
        Field(description="At most so many: there are none, as decoding one costs a step."),
    ] = None
    background: Literal["auto", "opaque"] | None = None
    quality: Literal["auto"] | None = None
    user: _Identifier | None = None
    safety_identifier: _Identifier | None = None
    seed: Seed | None = None
    guidance_scale: GuidanceScale | None = None
    negative_prompt: NegativePrompt | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_unused(cls, fields: Any) -> Any:
        """Refuse what cannot be honoured, with the reason; null asks for nothing."""
        if not isinstance(fields, dict):
            return fields
        for name, reason in _UNUSED.items():
            if fields.get(name) is not None:
                raise PydanticCustomError("parameter_unused", reason, {"param": name})
        for name, (values, reason) in _UNUSED_VALUES.items():
            value = fields.get(name)
            if isinstance(value, str) and value not in values:
                raise PydanticCustomError("value_unused", reason, {"param": name})
        return {name: value for name, value in fields.items() if name not in _UNUSED}

    @model_validator(mode="after")
    def _check_fields_together(self) -> Self:
        check_seed_range(self.seed, self.num_images, name="n")
        if self.output_compression is not None and self.output_format in (None, "png"):
            raise PydanticCustomError(
                "compression_unused",
                "output_compression is for webp and jpeg: a PNG loses nothing.",
                {"param": "output_compression"},
            )
        return self

    @property
    def num_images(self) -> int:
        """Pictures to make."""
        return self.n or 1

    @property
    def chosen_size(self) -> Size | None:
        """The output's size, if the request names one."""
        return None if self.size is None or self.size == _AUTO else _parsed(self.size)

    @property
    def caller(self) -> str | None:
        """Whom the request is said to be made for."""
        return self.safety_identifier or self.user


class GenerationsRequest(_ImagesRequest):
    """The body of `POST /v1/images/generations`."""

    model_config = ConfigDict(strict=True)

    num_inference_steps: Annotated[Steps | None, Field(description="Denoising steps, 1 to 4; 1 if left out.")] = None

    @property
    def chosen_size(self) -> Size:
        """The output's size."""
        return super().chosen_size or Size(DEFAULT_SIDE, DEFAULT_SIDE)

    def to_params(self) -> list[Txt2ImgParams]:
        """Return one params object per picture; a missing seed is drawn here."""
        return txt2img_params(
            self.prompt,
            seed=self.seed,
            num_images=self.num_images,
            num_inference_steps=self.num_inference_steps or 1,
            size=self.chosen_size,
        )


class EditsForm(_ImagesRequest):
    """The multipart form of `POST /v1/images/edits`."""

    image: Upload
    strength: Strength = 0.5
    num_inference_steps: Steps = 2

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        check_effective_steps(self.num_inference_steps, self.strength)
        return self

    def to_params(self, image: Image.Image) -> list[Img2ImgParams]:
        """Return one params object per picture, each starting from `image` (RGB, of the output's size)."""
        return img2img_params(
            self.prompt,
            image,
            seed=self.seed,
            num_images=self.num_images,
            num_inference_steps=self.num_inference_steps,
            strength=self.strength,
        )


class InputTokensDetails(BaseModel):
    """What the input was made of."""

    image_tokens: Literal[0] = 0
    text_tokens: int


class Usage(BaseModel):
    """CLIP tokens of the prompt that were used. Pictures are not made of tokens."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: Literal[0] = 0
    total_tokens: int

    @classmethod
    def of_prompt(cls, tokens: int) -> Self:
        """Return the usage of a prompt of so many tokens."""
        return cls(
            input_tokens=tokens, input_tokens_details=InputTokensDetails(text_tokens=tokens), total_tokens=tokens
        )


class GeneratedImage(BaseModel):
    """One picture."""

    b64_json: Annotated[str, Field(description="The file, base64.", json_schema_extra={"contentEncoding": "base64"})]
    seed: Annotated[int, Field(description="SDXL-Turbo's own: the same request with this seed makes it again.")]


class ImagesResponse(BaseModel):
    """The pictures of a request."""

    created: Annotated[int, Field(description="Unix time in seconds.")]
    data: list[GeneratedImage]
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png", "webp", "jpeg"]
    size: str
    usage: Usage


class CompletedEvent(BaseModel):
    """One finished picture of a streamed answer."""

    type: Literal["image_generation.completed", "image_edit.completed"]
    b64_json: str
    seed: int
    created_at: int
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png", "webp", "jpeg"]
    quality: Literal["auto"] = "auto"
    size: str
    usage: Usage
    safety_identifier: str | None = None


class Model(BaseModel):
    """A model that is served. `license` and `limits` are more than OpenAI's."""

    id: str
    object: Literal["model"] = "model"
    created: Annotated[int, Field(description="Unix time in seconds when this process loaded it.")]
    owned_by: str
    license: str
    limits: list[str]


class ModelList(BaseModel):
    """The models that are served: one."""

    object: Literal["list"] = "list"
    data: list[Model]
