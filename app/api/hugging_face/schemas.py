"""Wire models of Hugging Face's inference API."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from app.api.openapi import BINARY
from app.images.encoding import MediaType
from app.inference.request_validation import Img2ImgRequest, Txt2ImgRequest


class TargetSize(BaseModel):
    """The size in pixels, as `InferenceClient.image_to_image` sends it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    width: int
    height: int


def _hugging_face_parameters() -> dict[str, Any]:
    """Return the schema of `parameters`: the fields of both modes, and `target_size`."""
    properties = {
        **Txt2ImgRequest.model_json_schema()["properties"],
        **Img2ImgRequest.model_json_schema()["properties"],
        "target_size": TargetSize.model_json_schema(),
    }
    for field in properties.values():
        field.pop("default", None)
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "description": "The fields of `/txt2img` or `/img2img`; `target_size` may replace width and height. "
        "A `prompt` here, or a picture in `inputs`, makes the request image to image.",
    }


class HuggingFaceRequest(BaseModel):
    """The JSON body of `POST /`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    inputs: Annotated[str, Field(description="The prompt; for image to image a PNG, JPEG or WebP file in base64.")]
    parameters: Annotated[dict[str, Any], WithJsonSchema(_hugging_face_parameters())] = {}


REQUEST_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": HuggingFaceRequest.model_json_schema()},
            **{media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in (*MediaType, BINARY)},
        },
    }
}
"""The OpenAPI description of the body: JSON, or the bare file."""
