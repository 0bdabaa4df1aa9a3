"""POST /, for Hugging Face's `InferenceClient(model=URL)`, which posts every task to exactly the URL it is given.

For image to image without parameters it sends the bare file, otherwise JSON with the file in base64. For text to image
the prompt takes the file's place (huggingface_hub 2.4, inference/_providers/hf_inference.py).
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from app.api.answers import answer, picture_responses
from app.api.context import Context
from app.api.forms import checked
from app.api.gate.body_limits import MAX_JSON_BYTES
from app.api.gate.generation_route import GenerationRoute, media_type_of
from app.api.hugging_face.large_body import decode_base64, parse_large_json, read_body, unescape
from app.api.hugging_face.schemas import REQUEST_BODY, HuggingFaceRequest, TargetSize
from app.api.json_body import check_not_blank, parse_json
from app.api.openapi import JSON, PICTURE_PROBLEMS
from app.errors import InvalidRequestError
from app.inference.request_validation import Img2ImgRequest, Txt2ImgRequest

_PICTURE_STARTS = ("data:image/", "iVBORw0KGgo", "/9j/", "UklGR")
"""A data URL, and how PNG, JPEG and WebP files begin in base64."""

router = APIRouter(route_class=GenerationRoute, tags=["Hugging Face"])


@router.post(
    "/",
    response_class=Response,
    responses=picture_responses(PICTURE_PROBLEMS),
    operation_id="hugging_face",
    openapi_extra=REQUEST_BODY,
)
async def generate(request: Request, context: Context) -> Response:
    """Make a picture, as Hugging Face's inference endpoints do."""
    # The file's reader takes the body out of this list: a request that waits for the device must not keep it in memory.
    held = [await read_body(request.stream(), max_bytes=context.settings.max_body_bytes)]
    if media_type_of(request) != JSON:
        make = partial(context.generation.from_picture, Img2ImgRequest(prompt=""), held.pop)
        return await answer(make, request, num_images=1)
    sent, read = await _parse(held)
    if "prompt" in sent.parameters or sent.inputs.lstrip().startswith(_PICTURE_STARTS):
        fields = checked(Img2ImgRequest, {"prompt": "", **_with_sides(sent.parameters)}, strict=True)
        make = partial(context.generation.from_picture, fields, read)
        return await answer(make, request, num_images=fields.num_images)
    prompt = checked(Txt2ImgRequest, {**_with_sides(sent.parameters), "prompt": sent.inputs})
    return await answer(partial(context.generation.from_text, prompt), request, num_images=prompt.num_images)


async def _parse(held: list[memoryview]) -> tuple[HuggingFaceRequest, Callable[[], memoryview]]:
    """Return the request that is held, and a function that decodes its picture. That blocks, and works once.

    Large JSON is parsed in asyncio's thread pool: the codec threads may be busy for longer than a request may wait.
    """
    body = held.pop()
    if len(body) <= MAX_JSON_BYTES:
        whole = bytes(body)
        check_not_blank(whole, "inputs")
        value, long_text = parse_json(whole), None
    else:
        value, long_text = await asyncio.to_thread(parse_large_json, body)
    sent = checked(HuggingFaceRequest, value)
    if long_text is None:
        return sent, lambda: decode_base64(memoryview(bytearray(sent.inputs.strip().encode("ascii", "replace"))))
    held.append(long_text)
    return sent, lambda: decode_base64(unescape(held.pop()))


def _with_sides(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters with `target_size` as width and height."""
    others = dict(parameters)
    sent = others.pop("target_size", None)
    if sent is None:
        return others
    if {"width", "height"} & others.keys():
        raise InvalidRequestError("The size is sent twice, also as width or height.", param="target_size")
    return {**others, **checked(TargetSize, sent, "target_size").model_dump()}
