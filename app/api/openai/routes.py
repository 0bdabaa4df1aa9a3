"""OpenAI's Images API: POST /v1/images/generations, POST /v1/images/edits, GET /v1/models."""

import base64
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from app.api.answers import JSON
from app.api.context import ApiContext, Context
from app.api.forms import form_reader
from app.api.gate.admission import route_taking
from app.api.generation import generation_headers, read_upload, while_connected
from app.api.openai import schemas
from app.api.openapi import FORM, GENERATION_HEADERS, PICTURE_PROBLEMS, TEXT_PROBLEMS, Responses, form_body, problems
from app.errors import ModelNotFoundError, TurboError, UnauthorizedError
from app.images.encoding import MediaType
from app.inference.generation import Encoding, Generated

router = APIRouter(tags=["OpenAI"])
_generations = APIRouter(route_class=route_taking(JSON))
_edits = APIRouter(route_class=route_taking(FORM))

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
        "event": {"enum": ["image_generation.completed", "image_edit.completed"]},
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


@_generations.post(
    "/v1/images/generations", responses=_images_responses(TEXT_PROBLEMS), operation_id="images_generations"
)
async def generations(body: schemas.GenerationsRequest, request: Request, context: Context) -> Response:
    """Make pictures from a prompt, as OpenAI's Images API does."""
    _begin(body, request, context)
    work = context.generation.from_text(body, encoding=_encoding_of(body), observer=request.state.observer)
    return _answer(await while_connected(request, work), body, "image_generation.completed")


_Edits = Annotated[schemas.EditsForm, Depends(form_reader(schemas.EditsForm, one_as_list="image"))]


@_edits.post(
    "/v1/images/edits",
    responses=_images_responses(PICTURE_PROBLEMS),
    operation_id="images_edits",
    openapi_extra=form_body(schemas.EditsForm),
)
async def edits(form: _Edits, request: Request, context: Context) -> Response:
    """Make pictures from a prompt and a picture, as OpenAI's Images API does."""
    _begin(form, request, context)
    work = context.generation.from_picture(
        form, lambda: read_upload(form.image), encoding=_encoding_of(form), observer=request.state.observer
    )
    return _answer(await while_connected(request, work), form, "image_edit.completed")


router.include_router(_generations)
router.include_router(_edits)


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


def _begin(wanted: schemas.ImagesRequest, request: Request, context: ApiContext) -> None:
    _check_model(wanted.model, context)
    if wanted.caller:
        request.state.observer.facts["user"] = wanted.caller


def _encoding_of(wanted: schemas.ImagesRequest) -> Encoding:
    return Encoding(media_type=MediaType(f"image/{wanted.output_format or 'png'}"), quality=wanted.output_compression)


def _answer(
    pictures: Generated,
    wanted: schemas.ImagesRequest,
    event: Literal["image_generation.completed", "image_edit.completed"],
) -> Response:
    """Send all pictures in JSON, or each as a server-sent event.

    A stream begins when all pictures are done, so a request that fails has its error's status.
    """
    created = int(time.time())
    common: dict[str, Any] = {
        "output_format": wanted.output_format or "png",
        "size": f"{pictures.used.width}x{pictures.used.height}",
        "usage": schemas.Usage.of_prompt(pictures.used.prompt_tokens),
    }
    data = [
        schemas.GeneratedImage(b64_json=base64.b64encode(file).decode("ascii"), seed=seed)
        for file, seed in zip(pictures.files, pictures.seeds, strict=True)
    ]
    headers = generation_headers(pictures)
    if not wanted.stream:
        body = schemas.ImagesResponse(created=created, data=data, **common)
        return JSONResponse(body.model_dump(mode="json"), headers=headers)
    caller, stream = wanted.caller, ""
    for image in data:
        completed = schemas.CompletedEvent(
            type=event, created_at=created, safety_identifier=caller, **image.model_dump(), **common
        )
        stream += f"event: {event}\ndata: {completed.model_dump_json(exclude_none=True)}\n\n"
    return Response(stream, media_type="text/event-stream", headers=headers)
