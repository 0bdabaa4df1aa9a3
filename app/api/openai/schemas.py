"""Wire models of OpenAI's Images API, as its SDKs send and read them, with SDXL-Turbo's own fields.

Source: `openai.types` of the openai package 3.54 (images, models). Its SDKs omit what the caller omits, and send
null for None, so every parameter may be null.
"""

from typing import Annotated, Any, ClassVar, Final, Literal, Self

from PIL import Image
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from app.api.forms import Upload
from app.images.sizes import Size
from app.inference.request_validation import (
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
    seeds_from,
)
from app.pipelines.base import Img2ImgParams, Txt2ImgParams
from app.settings import DEFAULT_SIDE, MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE, parse_sizes

_UNUSED: Final = {
    "complexity": "Pictures are made of pixels, not drawn as SVG.",
    "frame_count": "Pictures are still: there are no frames.",
    "frame_duration_ms": "Pictures are still: there are no frames.",
    "input_fidelity": "Set strength instead: a lower strength keeps more of the picture.",
    "markup": "SDXL-Turbo changes the whole picture and cannot use marks.",
    "mask": "SDXL-Turbo changes the whole picture and cannot use a mask.",
    "moderation": "Nothing is moderated here, so the level has no effect.",
    "style": "SDXL-Turbo has no styles to choose from. Write the style into the prompt.",
    "svg": "Pictures are made of pixels, not drawn as SVG.",
}
"""Parameters that SDXL-Turbo cannot honour, with the reason."""

_UNUSED_VALUES: Final = {
    "background": (("auto", "opaque"), "SDXL-Turbo's pictures are opaque."),
    "output_format": (("png", "webp", "jpeg"), "The formats are png, webp and jpeg."),
    "quality": (("auto",), "The quality is auto; num_inference_steps, 1 to 4, changes it."),
    "response_format": (("b64_json",), "No picture is stored, so there is no URL. Use b64_json."),
}
"""The accepted values of parameters that have others in OpenAI's API, and the reason for rejecting the others."""


def _check_size(value: str) -> str:
    try:
        known = value == "auto" or value == str(_parsed(value))  # not 0512x512
    except ValueError:
        known = False
    if not known:
        raise PydanticCustomError(
            "size_parsing",
            "The size is auto, or WIDTHxHEIGHT with sides that are multiples of {multiple} from {least} to {most}.",
            {"multiple": SIDE_MULTIPLE, "least": MIN_SIDE, "most": MAX_SIDE},
        )
    return value


def _parsed(size: str) -> Size:
    return Size(*parse_sizes(size)[0])


_SizeName = Annotated[
    str,
    AfterValidator(_check_size),
    Field(
        description="WIDTHxHEIGHT in pixels, sides multiples of 8; auto is 512x512, or an edited picture's own aspect.",
        examples=["512x512"],
        # A pattern cannot express the bounds and multiples; the description states them.
        json_schema_extra={"pattern": r"^(auto|\d{2,4}x\d{2,4})$"},
    ),
]
_Identifier = Annotated[str, Field(max_length=256, description="Written into the request's log line; no other use.")]


class ImagesRequest(BaseModel):
    """The fields that generations and edits share. `event` names the server-sent event of a finished picture."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    size_param: ClassVar[str] = "size"
    event: ClassVar[str]

    prompt: Prompt
    model: Annotated[
        str | None, Field(max_length=256, description="The model that `GET /v1/models` names; may be omitted.")
    ] = None
    n: Annotated[NumImages | None, Field(description="Pictures to make; 1 if omitted.")] = None
    size: _SizeName | None = None
    response_format: Literal["b64_json"] | None = None
    output_format: Annotated[
        Literal["png", "webp", "jpeg"] | None, Field(description="The files' format; png if omitted.")
    ] = None
    output_compression: Annotated[
        Annotated[int, Field(ge=0, le=100), WHOLE] | None,
        Field(description="Quality of WebP and JPEG; 90 if omitted. PNG is lossless."),
    ] = None
    stream: Annotated[bool | None, Field(description="Answer with one server-sent event per picture.")] = None
    partial_images: Annotated[
        Annotated[int, Field(ge=0, le=3), WHOLE] | None,
        Field(description="The maximum; none are sent, as decoding one takes as long as a step."),
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
        """Reject with the reason what SDXL-Turbo cannot honour. null counts as omitted."""
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
                "output_compression needs webp or jpeg as output_format: a PNG loses nothing.",
                {"param": "output_compression"},
            )
        return self

    @property
    def num_images(self) -> int:
        return self.n or 1

    @property
    def chosen_size(self) -> Size | None:
        """The output's size, if the request names one."""
        return None if self.size is None or self.size == "auto" else _parsed(self.size)

    @property
    def caller(self) -> str | None:
        """The end user whom the client names."""
        return self.safety_identifier or self.user


class GenerationsRequest(ImagesRequest):
    """The body of `POST /v1/images/generations`."""

    model_config = ConfigDict(strict=True)
    event: ClassVar[str] = "image_generation.completed"

    num_inference_steps: Annotated[Steps | None, Field(description="Denoising steps, 1 to 4; 1 if omitted.")] = None

    @property
    def chosen_size(self) -> Size:
        return super().chosen_size or Size(DEFAULT_SIDE, DEFAULT_SIDE)

    def to_params(self) -> list[Txt2ImgParams]:
        return [
            Txt2ImgParams(
                prompt=self.prompt,
                seed=seed,
                num_inference_steps=self.num_inference_steps or 1,
                width=self.chosen_size.width,
                height=self.chosen_size.height,
            )
            for seed in seeds_from(self.seed, self.num_images)
        ]


class EditsForm(ImagesRequest):
    """The multipart form of `POST /v1/images/edits`."""

    event: ClassVar[str] = "image_edit.completed"

    image: Upload
    strength: Strength = 0.5
    num_inference_steps: Steps = 2

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        check_effective_steps(self.num_inference_steps, self.strength)
        return self

    def to_params(self, image: Image.Image) -> list[Img2ImgParams]:
        """Return one params object per picture, each starting from `image` (RGB, of the output's size)."""
        return [
            Img2ImgParams(
                prompt=self.prompt,
                seed=seed,
                num_inference_steps=self.num_inference_steps,
                strength=self.strength,
                image=image,
            )
            for seed in seeds_from(self.seed, self.num_images)
        ]


class InputTokensDetails(BaseModel):
    """The parts of the input."""

    image_tokens: Literal[0] = 0
    text_tokens: int


class Usage(BaseModel):
    """Used CLIP tokens of the prompt. Pictures do not count as tokens."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: Literal[0] = 0
    total_tokens: int

    @classmethod
    def of_prompt(cls, tokens: int) -> Self:
        return cls(
            input_tokens=tokens, input_tokens_details=InputTokensDetails(text_tokens=tokens), total_tokens=tokens
        )


class GeneratedImage(BaseModel):
    """One picture."""

    b64_json: Annotated[str, Field(description="The file, base64.", json_schema_extra={"contentEncoding": "base64"})]
    seed: Annotated[
        int, Field(description="Not in OpenAI's API: the same request with this seed makes the same picture.")
    ]


class ImagesResponse(BaseModel):
    """The pictures of a request."""

    created: Annotated[int, Field(description="Unix time in seconds.")]
    data: list[GeneratedImage]
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png", "webp", "jpeg"]
    size: str
    usage: Usage


class Model(BaseModel):
    """The served model. `license` and `limits` are not in OpenAI's API."""

    id: str
    object: Literal["model"] = "model"
    created: Annotated[int, Field(description="Unix time in seconds when this process loaded it.")]
    owned_by: str
    license: str
    limits: list[str]


class ModelList(BaseModel):
    """The one served model, as a list."""

    object: Literal["list"] = "list"
    data: list[Model]
