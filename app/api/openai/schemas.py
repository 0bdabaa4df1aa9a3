"""Wire models of OpenAI's Images API, as its SDKs send and read them, with SDXL-Turbo's own fields.

Source: `openai.types` of the openai package 3.54 (images, models). Its SDKs omit what the caller omits, and send
null for None, so every parameter may be null.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from app.api.fields import (
    GUIDANCE_REASON,
    NEGATIVE_PROMPT_REASON,
    SCHEDULER_REASON,
    Reading,
    Told,
    describe_leniency,
)
from app.api.forms import Upload
from app.api.model_names import ModelNames
from app.errors import ModelNotFoundError
from app.images.decoding import decode_image
from app.images.masks import MaskReading
from app.images.sizes import Size
from app.modes.fields import (
    WHOLE,
    ManyImages,
    Prompt,
    Seed,
    Steps,
    Strength,
    Uploads,
    check_effective_steps,
    check_seed_range,
    params_of,
)
from app.modes.img2img import Img2ImgParams
from app.modes.inpaint import DEFAULT_STEPS, DEFAULT_STRENGTH, InpaintParams, read_area
from app.modes.prompt_fields import PromptModeField, PromptSyntaxField, check_emphasis
from app.modes.txt2img import Txt2ImgParams
from app.pipelines.base import GenerationParams
from app.pipelines.prompt_options import PromptOptions
from app.settings import DEFAULT_SIDE, MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE, Settings, parse_sizes

_IGNORED: Final = {
    "complexity": "Pictures are made of pixels, not drawn as SVG.",
    "guidance_scale": GUIDANCE_REASON,
    "input_fidelity": "Set strength instead: a lower strength keeps more of the picture.",
    "moderation": "Nothing is moderated here.",
    "negative_prompt": NEGATIVE_PROMPT_REASON,
    "scheduler": SCHEDULER_REASON,
    "style": "SDXL-Turbo has no styles to choose from. Write the style into the prompt.",
}
"""Parameters without effect here, with the reason."""

_REFUSED: Final = {
    "frame_count": "Pictures are still: there are no frames.",
    "frame_duration_ms": "Pictures are still: there are no frames.",
    "markup": "Marks in a picture have no meaning here: send a mask.",
    "svg": "Pictures are made of pixels, not drawn as SVG.",
}
"""Parameters that ask for another kind of picture than this service makes, with the reason."""

_FORMATS: Final = {
    "output_format": (("png", "webp", "jpeg"), "The formats are png, webp and jpeg."),
    "response_format": (("b64_json", "url"), "No picture is stored: send b64_json, or url for a data: URL."),
}
"""Parameters that choose the kind of the answer: their values, and the reason for rejecting others."""

_ONE_EFFECT: Final = {
    "background": (("auto", "opaque"), "SDXL-Turbo's pictures are opaque."),
    "quality": (("auto",), "The quality is auto; num_inference_steps changes it."),
}
"""Parameters with one effect here: the values that ask for it, and the reason for ignoring others."""


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


def _describe(schema: dict[str, Any]) -> None:
    others = {name: reason for name, (_, reason) in _ONE_EFFECT.items()}
    describe_leniency(schema, steps="num_inference_steps", ignored={**_IGNORED, **others}, refused=_REFUSED)


class ImagesRequest(BaseModel):
    """The fields that generations and edits share. `event` names the server-sent event of a finished picture."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_describe)
    size_param: ClassVar[str] = "size"
    event: ClassVar[str]

    prompt: Prompt
    model: Annotated[
        str | None, Field(max_length=256, description="A model that `GET /v1/models` lists; may be empty or omitted.")
    ] = None
    n: Annotated[ManyImages | None, Field(description="Pictures to make; 1 if omitted.")] = None
    size: _SizeName | None = None
    response_format: Annotated[
        Literal["b64_json", "url"] | None,
        Field(
            description="`url` gives a `data:` URL that has the picture in it: none is stored. If omitted, b64_json; "
            "but url for a model whose name begins with dall-e-, as in OpenAI's API."
        ),
    ] = None
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
    user: _Identifier | None = None
    safety_identifier: _Identifier | None = None
    seed: Seed | None = None
    prompt_mode: PromptModeField = "cut"
    prompt_syntax: PromptSyntaxField = "plain"

    @model_validator(mode="after")
    def _check_fields_together(self) -> Self:
        check_seed_range(self.seed, self.num_images, name="n")
        check_emphasis(self.prompt, self.prompt_syntax)
        return self

    @property
    def prompt_options(self) -> PromptOptions:
        """How the prompt is read."""
        return PromptOptions(mode=self.prompt_mode, syntax=self.prompt_syntax)

    @property
    def num_images(self) -> int:
        return self.n or 1

    @property
    def as_url(self) -> bool:
        """Whether pictures are sent as URLs. Without a format, clients of the dall-e models expect that."""
        if self.response_format is None:
            return self.model is not None and self.model.startswith("dall-e-")
        return self.response_format == "url"

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

    num_inference_steps: Annotated[Steps | None, Field(description="Denoising steps; 1 if omitted.")] = None

    @property
    def chosen_size(self) -> Size:
        return super().chosen_size or Size(DEFAULT_SIDE, DEFAULT_SIDE)

    def to_params(self) -> list[Txt2ImgParams]:
        size = self.chosen_size
        steps = self.num_inference_steps or 1
        return params_of(self, Txt2ImgParams, num_inference_steps=steps, width=size.width, height=size.height)


_OF_MASKED_EDITS: Final = {"strength": DEFAULT_STRENGTH, "num_inference_steps": DEFAULT_STEPS}
"""Defaults of edits with a mask."""


def _describe_edits(schema: dict[str, Any]) -> None:
    _describe(schema)
    for name, masked in _OF_MASKED_EDITS.items():
        described = schema["properties"][name]
        described["description"] += f" If omitted {described.pop('default'):g}, with a mask {masked:g}."


class EditsForm(ImagesRequest):
    """The multipart form of `POST /v1/images/edits`. With a mask, a part of the picture is drawn anew."""

    model_config = ConfigDict(json_schema_extra=_describe_edits)
    event: ClassVar[str] = "image_edit.completed"
    upload_params: ClassVar[Mapping[str, str]] = {}

    image: Upload
    mask: Annotated[
        Upload | None,
        Field(
            description="PNG of the picture's aspect: its transparent parts are drawn anew, the rest stays. Without "
            "transparency, its white parts are drawn."
        ),
    ] = None
    strength: Strength = 0.5
    num_inference_steps: Steps = 2

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        check_effective_steps(self.num_inference_steps, self.strength)
        return self

    def to_params(self, uploads: Uploads, settings: Settings) -> Sequence[GenerationParams]:
        """Return one params object per picture, made from the upload `image` and, if there is one, `mask`. Blocks.

        Raises:
            TurboError: A file is not a usable picture, or the mask draws nothing.
        """
        steps, strength = self.num_inference_steps, self.strength
        if "mask" in uploads:
            area = read_area(uploads, self.chosen_size, settings, reading=MaskReading.TRANSPARENCY)
            return params_of(self, InpaintParams, num_inference_steps=steps, strength=strength, area=area)
        image = decode_image(uploads["image"](), self.chosen_size, settings)
        return params_of(self, Img2ImgParams, num_inference_steps=steps, strength=strength, image=image)


AnyRequest = TypeVar("AnyRequest", bound=ImagesRequest)


def read(
    sent: Mapping[str, Any],
    model: type[AnyRequest],
    *,
    settings: Settings,
    models: ModelNames,
    check_size: Callable[[Size, str], None],
) -> tuple[AnyRequest, Told]:
    """Return a request's fields, and what became of the parameters without effect here.

    Raises:
        RequestValidationError: All faults.
        ModelNotFoundError: The only fault is the model's name.
    """
    is_form = model is EditsForm
    reading = Reading(sent, settings, is_form=is_form)
    _ignore(reading)
    _refuse(reading)
    reading.shorten("prompt")
    reading.limit_steps()
    if is_form:
        if "mask" in reading.fields:
            reading.fields = {**_OF_MASKED_EDITS, **reading.fields}
        reading.fit_strength(model)
    elif "image" in reading.fields:
        reading.refuse("image", "Send a picture to /v1/images/edits.")
    reading.ignore_unknown(model)
    if (size := _size_of(reading.fields.get("size"))) is not None:
        reading.check(lambda: check_size(size, "size"))
    fields = reading.attempt(model)
    name = reading.fields.get("model")
    if isinstance(name, str) and not models.has(name):
        if fields is not None and not reading.faults:
            models.check(name)
        reading.refuse("model", models.reason, code=ModelNotFoundError.code)
    return reading.conclude(fields), reading.told


def _size_of(sent: object) -> Size | None:
    """Return the size that a field has, if it has one."""
    try:
        return _parsed(sent) if isinstance(sent, str) else None
    except ValueError:
        return None


def _refuse(reading: Reading) -> None:
    """Reject what would make another kind of picture."""
    if isinstance(images := reading.fields.get("image"), list):
        reading.refuse("image", "Send one image, not several.")
        reading.fields["image"] = next(iter(images), None)
    for name, reason in _REFUSED.items():
        if reading.fields.get(name) is not None:
            reading.refuse(name, reason)
    for name, (values, reason) in _FORMATS.items():
        if isinstance(value := reading.fields.get(name), str) and value not in values:
            reading.refuse(name, reason, code="value_unused")


def _ignore(reading: Reading) -> None:
    """Leave out what has no effect."""
    if reading.fields.get("background") == "transparent":
        reading.refuse("background", _ONE_EFFECT["background"][1], code="value_unused")
    for name, (values, reason) in _ONE_EFFECT.items():
        if reading.fields.get(name) in values:
            del reading.fields[name]
        reading.ignore(name, reason)
    for name, reason in _IGNORED.items():
        reading.ignore(name, reason)
    if reading.fields.get("output_format", "png") == "png" and "output_compression" in reading.fields:
        compression = reading.fields["output_compression"]
        reading.ignore("output_compression", "A PNG loses nothing; it is for webp and jpeg.")
        reading.fields["output_compression"] = compression  # it is checked, and the encoder has no use for it


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
    """One picture: `b64_json`, or with `response_format` url a `url`."""

    b64_json: Annotated[
        str | None, Field(description="The file, base64.", json_schema_extra={"contentEncoding": "base64"})
    ] = None
    url: Annotated[str | None, Field(description="A `data:` URL that has the file in it.")] = None
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
    model: Annotated[str, Field(description="Not in OpenAI's API: the model that drew.")]
    warnings: Annotated[
        list[str] | None,
        Field(description="Not in OpenAI's API: parameters that were ignored or changed, with the reason."),
    ] = None


class Model(BaseModel):
    """The served model, or a name that stands for it.

    `license`, `limits`, `loras` and `alias_of` are not in OpenAI's API.
    """

    id: str
    object: Literal["model"] = "model"
    created: Annotated[int, Field(description="Unix time in seconds when this process loaded it.")]
    owned_by: str
    license: str
    limits: list[str]
    loras: Annotated[
        list[str] | None, Field(description="The LoRAs in the model's weights, as NAME:WEIGHT, if any.")
    ] = None
    alias_of: Annotated[str | None, Field(description="The served model, if `id` only stands for it.")] = None


class ModelList(BaseModel):
    """The served model, and the names that stand for it (`TURBO_MODEL_ALIASES`)."""

    object: Literal["list"] = "list"
    data: list[Model]
