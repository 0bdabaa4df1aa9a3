"""OpenAI's Images API: POST /v1/images/generations, POST /v1/images/edits, GET /v1/models."""

import base64
import json
import time
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from app.api.context import ApiContext, Context
from app.api.forms import form_reader, read_upload
from app.api.gate.generation_route import GenerationRoute
from app.api.generation import MakePictures, generation_headers, make_while_connected
from app.api.openai import schemas
from app.api.openapi import GENERATION_HEADERS, PICTURE_PROBLEMS, TEXT_PROBLEMS, Responses, form_body, problems
from app.errors import ModelNotFoundError, TurboError, UnauthorizedError
from app.images.encoding import MediaType
from app.inference.generation import Encoding

router = APIRouter(tags=["OpenAI"])
_pictures = APIRouter(route_class=GenerationRoute)

_LICENCES = {"demo": "Apache-2.0", "fake": "none: there is no model"}
"""Licences by TURBO_MODEL. Every other value means SDXL-Turbo, whatever the source of its weights."""

_SDXL_TURBO_LICENCE = (
    "Stability AI's, for research and non-commercial use unless you hold another: "
    "https://huggingface.co/stabilityai/sdxl-turbo"
)
_LIMITS = [
    "It was not trained to show people or events truthfully. Its pictures must not be presented as truthful.",
    "Its use must follow Stability AI's use policy: https://stability.ai/use-policy",
    "Pictures of 512x512 are best. It cannot render legible text. Faces and people may look wrong.",
]
"""Source: the model card (https://huggingface.co/stabilityai/sdxl-turbo, Uses; Limitations and Bias)."""

_COMPLETED_EVENT: dict[str, Any] = {
    "type": "object",
    "description": "A server-sent event; `data` is JSON with a picture in `b64_json`.",
    "properties": {
        "event": {"enum": [schemas.GenerationsRequest.event, schemas.EditsForm.event]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}


def _images_responses(kinds: Sequence[type[TurboError]]) -> Responses:
    images = {
        "model": schemas.ImagesResponse,
        "description": "The pictures, or with `stream` one event per picture.",
        "content": {"text/event-stream": {"schema": _COMPLETED_EVENT}},
        "headers": GENERATION_HEADERS,
    }
    return {200: images, **problems(*kinds, ModelNotFoundError)}


@_pictures.post("/v1/images/generations", responses=_images_responses(TEXT_PROBLEMS), operation_id="images_generations")
async def generations(body: schemas.GenerationsRequest, request: Request, context: Context) -> Response:
    """Make pictures from a prompt, as OpenAI's Images API does."""
    return await _answer(partial(context.generation.from_text, body), body, request, context)


_Edits = Annotated[schemas.EditsForm, Depends(form_reader(schemas.EditsForm, one_as_list="image"))]


@_pictures.post(
    "/v1/images/edits",
    responses=_images_responses(PICTURE_PROBLEMS),
    operation_id="images_edits",
    openapi_extra=form_body(schemas.EditsForm),
)
async def edits(form: _Edits, request: Request, context: Context) -> Response:
    """Make pictures from a prompt and a picture, as OpenAI's Images API does."""
    make = partial(context.generation.from_picture, form, partial(read_upload, form.image))
    return await _answer(make, form, request, context)


router.include_router(_pictures)


@router.get(
    "/v1/models",
    responses=problems(UnauthorizedError),
    operation_id="list_models",
    response_description="The one model, with its licence and limits.",
)
async def list_models(request: Request, context: Context) -> schemas.ModelList:
    """Return the served model with its licence and limits, as a list."""
    context.access.identify(request)
    return schemas.ModelList(data=[_served(context)])


@router.get(
    "/v1/models/{model:path}",
    responses=problems(UnauthorizedError, ModelNotFoundError),
    operation_id="retrieve_model",
    response_description="The model, with its licence and limits.",
)
async def retrieve_model(model: str, request: Request, context: Context) -> schemas.Model:
    """Return the served model with its licence and limits."""
    context.access.identify(request)
    _check_model(model, context)
    return _served(context)


def _served(context: ApiContext) -> schemas.Model:
    model = context.registry.loaded.model
    owner, named, _ = model.partition("/")
    return schemas.Model(
        id=model,
        created=context.started,
        owned_by=owner if named else "sdxl-turbo-server",
        license=_LICENCES.get(context.settings.model.partition(":")[0], _SDXL_TURBO_LICENCE),
        limits=_LIMITS,
    )


def _check_model(model: str | None, context: ApiContext) -> None:
    served = context.registry.loaded.model
    if model is not None and model != served:
        raise ModelNotFoundError(f"The served model is {served}. Send this name, or omit it.", param="model")


async def _answer(make: MakePictures, wanted: schemas.ImagesRequest, request: Request, context: ApiContext) -> Response:
    """Make pictures, and send all of them in JSON, or each as a server-sent event.

    A stream begins when all pictures are done, so a request that fails has its error's status.
    """
    _check_model(wanted.model, context)
    if wanted.caller:
        request.state.observer.facts["user"] = wanted.caller
    output_format = wanted.output_format or "png"
    encoding = Encoding(media_type=MediaType(f"image/{output_format}"), quality=wanted.output_compression)
    pictures = await make_while_connected(make, encoding, request)
    body = schemas.ImagesResponse(
        created=int(time.time()),
        data=[
            schemas.GeneratedImage(b64_json=base64.b64encode(file).decode("ascii"), seed=seed)
            for file, seed in zip(pictures.files, pictures.seeds, strict=True)
        ],
        output_format=output_format,
        size=f"{pictures.used.width}x{pictures.used.height}",
        usage=schemas.Usage.of_prompt(pictures.used.prompt_tokens),
    ).model_dump(mode="json")
    headers = generation_headers(pictures)
    if not wanted.stream:
        return JSONResponse(body, headers=headers)
    images = body.pop("data")
    common = {"type": wanted.event, "created_at": body.pop("created"), "quality": "auto", **body}
    if wanted.caller:
        common["safety_identifier"] = wanted.caller
    stream = "".join(f"event: {wanted.event}\ndata: {json.dumps({**common, **image})}\n\n" for image in images)
    return Response(stream, media_type="text/event-stream", headers=headers)
