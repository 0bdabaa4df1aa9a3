"""POST /, for Hugging Face's `InferenceClient(model=URL)`, which posts to the address that it is given and no other.

Its image_to_image sends the bare file if there is nothing else to say, else JSON with the file in base64; its
text_to_image sends the prompt in the same place (huggingface_hub 2.4, inference/_providers/hf_inference.py).
"""

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from app.api.answers import JSON, accepted, answer, choose_media_type, encoding_of, picture_responses
from app.api.context import ApiContext, Context
from app.api.forms import checked, validation_error
from app.api.gate.admission import media_type_of, route_taking
from app.api.gate.body_limits import MAX_JSON_BYTES
from app.api.generation import generate_from_picture, generate_from_text
from app.api.hugging_face.large_body import LongText, decoded_base64, parse_json_around, read_body
from app.api.hugging_face.schemas import REQUEST_BODY, HuggingFaceRequest, TargetSize
from app.api.json_body import check_not_blank, parse_json
from app.api.openapi import BINARY, PICTURE_PROBLEMS
from app.errors import InvalidRequestError
from app.images.encoding import MediaType
from app.inference.requests import Img2ImgRequest, Txt2ImgRequest

_PICTURE_STARTS = ("iVBORw0KGgo", "/9j/", "UklGR")
"""How PNG, JPEG and WebP files begin in base64."""

router = APIRouter(route_class=route_taking(JSON, *MediaType, BINARY, ""), tags=["Hugging Face"])


@router.post(
    "/",
    response_class=Response,
    responses=picture_responses(PICTURE_PROBLEMS),
    operation_id="hugging_face",
    openapi_extra=REQUEST_BODY,
)
async def generate(request: Request, context: Context) -> Response:
    """Make a picture, as Hugging Face's inference endpoints do."""
    held = [await read_body(request.stream(), max_bytes=context.settings.max_body_bytes)]
    if media_type_of(request) != JSON:
        return await _from_picture({}, held.pop, request, context)
    inputs, parameters = await _parsed(held.pop())
    begin = inputs[0].begin if isinstance(inputs[0], LongText) else inputs[0]
    if "prompt" in parameters or _is_picture(begin.lstrip()):
        return await _from_picture(parameters, lambda: _from_base64(inputs.pop()), request, context)
    fields = checked(Txt2ImgRequest, {**_with_sides(parameters), "prompt": begin})
    media_type = choose_media_type(accepted(request), num_images=fields.num_images)
    return answer(await generate_from_text(fields, encoding_of(media_type), request, context), media_type)


async def _from_picture(
    parameters: dict[str, Any], read: Callable[[], memoryview], request: Request, context: ApiContext
) -> Response:
    """Make a picture from the file that `read` returns, and keeps no longer."""
    fields = checked(Img2ImgRequest, {"prompt": "", **_with_sides(parameters)}, strict=True)
    media_type = choose_media_type(accepted(request), num_images=fields.num_images)
    pictures = await generate_from_picture(fields, read, encoding_of(media_type), request, context)
    return answer(pictures, media_type)


async def _parsed(body: memoryview) -> tuple[list[str | LongText], dict[str, Any]]:
    """Return the inputs, in a list that they can be taken out of, and the parameters.

    A thread of asyncio's pool parses what is long: the codec threads may be busy for longer than a request may wait.
    """
    if len(body) <= MAX_JSON_BYTES:
        whole = bytes(body)
        check_not_blank(whole, "inputs")
        value, stand_in, text = parse_json(whole), "", None
    else:
        value, stand_in, text = await asyncio.to_thread(parse_json_around, body)
    try:
        sent = HuggingFaceRequest.model_validate(value)
    except ValidationError as error:
        raise validation_error(error) from error
    return [sent.inputs if text is None or sent.inputs != stand_in else text], sent.parameters


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


def _from_base64(inputs: str | LongText) -> memoryview:
    """Return the file. Blocks; call it in a thread."""
    if isinstance(inputs, LongText):
        return inputs.decode_base64()
    return memoryview(b"".join(decoded_base64([inputs])))
