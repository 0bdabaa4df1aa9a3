"""POST /, for Hugging Face's `InferenceClient(model=URL)`, which posts to the address that it is given and no other.

Its image_to_image sends the bare file if there is nothing else to say, else JSON with the file in base64; its
text_to_image sends the prompt in the same place (huggingface_hub 2.4, inference/_providers/hf_inference.py).
"""

import asyncio
import base64
import binascii
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from app.api.context import ApiContext, Context
from app.api.generation import answer, encoding_of
from app.api.generation_route import checked, media_type_of, route_taking, validation_error
from app.api.limits import MAX_JSON_BYTES
from app.api.negotiation import JSON, accepted, choose_media_type
from app.api.openapi import BINARY, HUGGING_FACE_BODY, IMG2IMG_RESPONSES
from app.api.pictures import make_from_picture, make_from_text
from app.api.schemas import HuggingFaceRequest, Img2ImgFields, TargetSize, Txt2ImgRequest
from app.errors import BodyTooLargeError, InvalidImageError, InvalidRequestError
from app.inference.image_codec import MediaType

_PICTURE_STARTS = ("iVBORw0KGgo", "/9j/", "UklGR")
"""How PNG, JPEG and WebP files begin in base64."""

_BASE64_AT_ONCE = 1 << 20
"""Characters, a multiple of 4, after which decoding lets other threads go on."""

router = APIRouter(route_class=route_taking(JSON, *MediaType, BINARY, ""), tags=["Hugging Face"])


@router.post(
    "/",
    response_class=Response,
    responses=IMG2IMG_RESPONSES,
    operation_id="hugging_face",
    openapi_extra=HUGGING_FACE_BODY,
)
async def generate(request: Request, context: Context) -> Response:
    """Make a picture, as Hugging Face's inference endpoints do."""
    if media_type_of(request) != JSON:
        held = [await _body(request)]
        return await _from_picture({}, held.pop, request, context)
    inputs, parameters = _parsed(await _body(request))
    if "prompt" in parameters or _is_picture(inputs[0].lstrip()):
        return await _from_picture(parameters, lambda: _from_base64(inputs.pop().strip()), request, context)
    fields = checked(Txt2ImgRequest, {**_with_sides(parameters), "prompt": inputs[0]})
    media_type = choose_media_type(accepted(request), num_images=fields.num_images)
    return answer(await make_from_text(fields, encoding_of(media_type), request, context), media_type)


async def _body(request: Request) -> bytes:
    """Read the body; `request.body()` would keep it as long as the request."""
    return b"".join([part async for part in request.stream()])


async def _from_picture(
    parameters: dict[str, Any], read: Callable[[], bytes], request: Request, context: ApiContext
) -> Response:
    """Make a picture from the file that `read` returns, and keeps no longer."""
    fields = checked(Img2ImgFields, {"prompt": "", **_with_sides(parameters)}, strict=True)
    media_type = choose_media_type(accepted(request), num_images=fields.num_images)

    async def read_in_thread() -> bytes:
        return await asyncio.get_running_loop().run_in_executor(context.codec_threads, read)

    pictures = await make_from_picture(fields, read_in_thread, encoding_of(media_type), request, context)
    return answer(pictures, media_type)


def _parsed(body: bytes) -> tuple[list[str], dict[str, Any]]:
    """Return the inputs, in a list that they can be taken out of, and the parameters.

    What is not the picture is as short as other JSON: parsing blocks the event loop, for many values a second; and a
    string takes four bytes a character if one of them is no ASCII.
    """
    if body.count(b'"') > MAX_JSON_BYTES:
        raise _too_much()
    longest = max(body.split(b'"'), key=len)  # the picture, as base64 has no quotation marks
    if len(body) - len(longest) > MAX_JSON_BYTES:
        raise _too_much()
    if len(longest) > MAX_JSON_BYTES and not _may_be_base64(longest):
        raise _no_base64()
    try:
        sent = HuggingFaceRequest.model_validate_json(body)
    except ValidationError as error:
        raise validation_error(error) from error
    return [sent.inputs], sent.parameters


def _may_be_base64(text: bytes) -> bool:
    """Tell a picture from many values, and from text that takes four bytes a character. A data URL has a comma."""
    return text.isascii() and b"\\u" not in text and b"[" not in text and text.count(b",") <= 1


def _too_much() -> BodyTooLargeError:
    return BodyTooLargeError(f"The JSON has more than {MAX_JSON_BYTES} bytes beside the picture.")


def _no_base64() -> InvalidImageError:
    return InvalidImageError("The picture is not base64.", param="inputs")


def _with_sides(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters with `target_size` as width and height."""
    others = dict(parameters)
    sent = others.pop("target_size", None)
    if sent is None:
        return others
    if {"width", "height"} & others.keys():
        raise InvalidRequestError("The size is sent twice, also as width or height.", param="target_size")
    try:
        size = TargetSize.model_validate(sent)
    except ValidationError as error:
        raise validation_error(error, "target_size") from error
    return {**others, **size.model_dump()}


def _is_picture(inputs: str) -> bool:
    """Tell a picture from a prompt: by how its base64 begins, or as a data URL."""
    return inputs.startswith((*_PICTURE_STARTS, "data:image/"))


def _from_base64(text: str) -> bytes:
    """Decode a piece after another, as each holds the interpreter. Blocks; call it in a thread."""
    start = text.find(",") + 1 if text.startswith("data:") else 0
    pieces = (text[at : at + _BASE64_AT_ONCE] for at in range(start, len(text), _BASE64_AT_ONCE))
    try:
        return b"".join(base64.b64decode(piece, validate=True) for piece in pieces)
    except (binascii.Error, ValueError) as error:
        raise _no_base64() from error
