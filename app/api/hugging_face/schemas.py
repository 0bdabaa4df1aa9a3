"""Wire models of Hugging Face's inference API, and what becomes of the parameters that its clients send."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from app.api.fields import GUIDANCE_REASON, NEGATIVE_PROMPT_REASON, SCHEDULER_REASON, Reading, describe_leniency
from app.images.sizes import Size
from app.modes.fields import ManyImages, Prompt
from app.modes.img2img import Img2ImgRequest
from app.modes.inpaint import InpaintRequest
from app.modes.txt2img import Txt2ImgRequest
from app.settings import DEFAULT_SIDE, Settings

_IGNORED: Final = {
    "guidance_scale": GUIDANCE_REASON,
    "negative_prompt": NEGATIVE_PROMPT_REASON,
    "scheduler": SCHEDULER_REASON,
}
"""Parameters without effect here, with the reason."""


class TargetSize(BaseModel):
    """The size in pixels, as `InferenceClient.image_to_image` sends it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    width: int
    height: int


class TextParameters(Txt2ImgRequest):
    """The parameters of a request with a prompt in `inputs`."""

    num_images: ManyImages = 1


class PictureParameters(Img2ImgRequest):
    """The parameters of a request with a picture in `inputs`."""

    model_config = ConfigDict(strict=True)
    upload_params: ClassVar[Mapping[str, str]] = {"image": "inputs"}

    prompt: Prompt = ""
    num_images: ManyImages = 1


class InpaintParameters(InpaintRequest):
    """The parameters of a request with a picture in `inputs`, of which a part is drawn."""

    model_config = ConfigDict(strict=True)

    prompt: Prompt = ""
    num_images: ManyImages = 1
    upload_params: ClassVar[Mapping[str, str]] = {"image": "inputs", "mask": "mask_image"}

    mask_image: Annotated[
        str | None,
        Field(description="The picture's mask, a file in base64: white is drawn anew, black stays, grey blends."),
    ] = None


INPAINTING: Final = InpaintParameters.model_fields.keys() - PictureParameters.model_fields.keys()
"""Parameters of inpainting alone."""


def _parameters_schema() -> dict[str, Any]:
    """Return the schema of `parameters`: the fields of all modes, `target_size`, and what is ignored."""
    properties = {
        **TextParameters.model_json_schema()["properties"],
        **InpaintParameters.model_json_schema()["properties"],
        **PictureParameters.model_json_schema()["properties"],
        "target_size": TargetSize.model_json_schema(),
    }
    schema = {
        "type": ["object", "null"],
        "properties": properties,
        "description": "The fields of `/txt2img`, `/img2img` or `/inpaint`; `target_size` may replace width and "
        "height. A `prompt` here, or a picture in `inputs`, makes the request image to image, and a `mask_image` too "
        "makes it inpainting.",
    }
    describe_leniency(schema, steps="num_inference_steps", ignored=_IGNORED, refused={})
    for field in properties.values():
        field.pop("default", None)
        field.pop("title", None)
    return schema


def _describe(schema: dict[str, Any]) -> None:
    schema["additionalProperties"] = True
    del schema["properties"]["parameters"]["default"]  # openapi-python-client knows no default of an object or null


class HuggingFaceRequest(BaseModel):
    """The JSON body of `POST /`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, json_schema_extra=_describe)

    inputs: Annotated[str, Field(description="The prompt; for image to image a PNG, JPEG or WebP file in base64.")]
    parameters: Annotated[dict[str, Any], WithJsonSchema(_parameters_schema())] = {}


AnyParameters = TypeVar("AnyParameters", bound=BaseModel)


def read_request(sent: Mapping[str, Any], settings: Settings) -> tuple[str, Reading]:
    """Return the `inputs` of a request, and the reading of its parameters, with the faults found so far."""
    reading = Reading(sent, settings)
    reading.ignore("options", "Nothing is cached, and the model is always loaded.")
    reading.ignore_unknown(HuggingFaceRequest)
    request = reading.attempt(HuggingFaceRequest)
    if request is not None:
        return request.inputs, reading.inner(request.parameters)
    inputs, parameters = (reading.fields.get(name) for name in ("inputs", "parameters"))
    return inputs if isinstance(inputs, str) else "", reading.inner(parameters if isinstance(parameters, dict) else {})


def read_parameters(
    reading: Reading, model: type[AnyParameters], *, check_size: Callable[[Size, str], None]
) -> AnyParameters:
    """Return the parameters as the wire model of their mode.

    Raises:
        RequestValidationError: All faults.
    """
    for name, reason in _IGNORED.items():
        reading.ignore(name, reason)
    if {"target_size"} < {"target_size", "width", "height"} & reading.fields.keys():
        reading.refuse("target_size", "The size is sent twice, also as width or height.")
    elif (sides := reading.part("target_size", TargetSize)) is not None:
        reading.fields.update(sides.model_dump())
    reading.shorten("prompt")
    reading.limit_steps()
    if model is not TextParameters:
        reading.fit_strength(model)
    reading.ignore_unknown(model)
    if (size := reading.size(DEFAULT_SIDE if model is TextParameters else None)) is not None:
        reading.check(lambda: check_size(size, "width"))
    return reading.checked(model)
