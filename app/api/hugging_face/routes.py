"""POST /, for Hugging Face's `InferenceClient(model=URL)`, which posts every task to exactly the URL it is given.

For image to image without parameters it sends the bare file, otherwise JSON with the file in base64. For text to image
the prompt takes the file's place (huggingface_hub 2.4, inference/_providers/hf_inference.py).
"""

from functools import partial

from fastapi import APIRouter, Request, Response

from app.api.answers import answer, picture_responses
from app.api.context import Context
from app.api.errors import ProblemWithText
from app.api.gate.generation_route import GenerationRoute, media_type_of
from app.api.generation import MakePictures
from app.api.hugging_face.schemas import (
    INPAINTING,
    HuggingFaceRequest,
    InpaintParameters,
    PictureParameters,
    TextParameters,
    read_parameters,
    read_request,
)
from app.api.json_body import as_object
from app.api.large_json import parse_held, read_body, take_picture
from app.api.openapi import BINARY, JSON, PICTURE_PROBLEMS, json_body
from app.images.encoding import MediaType

_PICTURE_STARTS = ("data:image/", "iVBORw0KGgo", "/9j/", "UklGR")
"""A data URL, and how PNG, JPEG and WebP files begin in base64."""


class _FileRoute(GenerationRoute):
    """A route whose body may also be the bare file.

    The OpenAPI document has JSON alone: openapi-python-client 0.29 cannot import what it generates for two types.
    """

    also_accepts = (*MediaType, BINARY)


router = APIRouter(route_class=_FileRoute, tags=["Hugging Face"])


@router.post(
    "/",
    response_class=Response,
    responses=picture_responses(PICTURE_PROBLEMS, told=True, problem=ProblemWithText),
    operation_id="hugging_face",
    openapi_extra=json_body(HuggingFaceRequest),
)
async def generate(request: Request, context: Context) -> Response:
    """Make a picture, as Hugging Face's inference endpoints do. The body may also be the bare file of a picture."""
    # The file's reader takes the body out of this list: a request that waits for the device must not keep it in memory.
    held = [await read_body(request.stream(), max_bytes=context.settings.max_body_bytes)]
    if media_type_of(request) != JSON:
        make: MakePictures = partial(context.generation.from_uploads, PictureParameters(), {"image": held.pop})
        return await answer(make, request, num_images=1)
    sent, texts = await parse_held(held, required="inputs")
    inputs, parameters = read_request(as_object(sent), context.settings)
    check_size = context.generation.check_size
    if "prompt" in parameters.fields or inputs.lstrip().startswith(_PICTURE_STARTS):
        uploads = {"image": take_picture(inputs, texts, param="inputs")}
        fields: PictureParameters | InpaintParameters
        if not INPAINTING.isdisjoint(parameters.fields):
            fields = read_parameters(parameters, InpaintParameters, check_size=check_size)
            if fields.mask_image is not None:
                uploads["mask"] = take_picture(fields.mask_image, texts, param="mask_image")
        else:
            fields = read_parameters(parameters, PictureParameters, check_size=check_size)
        make = partial(context.generation.from_uploads, fields, uploads)
        return await answer(make, request, num_images=fields.num_images, told=parameters.told)
    parameters.fields["prompt"] = inputs
    prompt = read_parameters(parameters, TextParameters, check_size=check_size)
    make = partial(context.generation.from_text, prompt)
    return await answer(make, request, num_images=prompt.num_images, told=parameters.told)
