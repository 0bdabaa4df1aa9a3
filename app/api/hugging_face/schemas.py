"""Wire models of Hugging Face's inference API."""

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
)

from app.api.openapi import BINARY
from app.images.encoding import MediaType
from app.inference.requests import Img2ImgRequest, Txt2ImgRequest


class TargetSize(BaseModel):
    """The size as image_to_image sends it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    width: int
    height: int


def _hugging_face_parameters() -> dict[str, Any]:
    """Return the schema of what parameters may be: those of both modes, and the size under two names."""
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
        "description": "The fields of `/txt2img` or `/img2img`; width and height may come as `target_size`. "
        "With a `prompt` here, or with a picture in `inputs`, it is image to image.",
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
"""What the OpenAPI document says of the body: JSON, or the bare file."""
