"""OpenAI's Images API: POST /v1/images/generations, POST /v1/images/edits, GET /v1/models."""

import base64
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from app.api.answers import JSON
from app.api.context import ApiContext, Context
from app.api.forms import read_form
from app.api.gate.admission import route_taking
from app.api.generation import generate_from_picture, generate_from_text, generation_headers, read_upload
from app.api.openai.schemas import (
    CompletedEvent,
    EditsForm,
    GeneratedImage,
    GenerationsRequest,
    ImagesResponse,
    Model,
    ModelList,
    Usage,
)
from app.api.openapi import FORM, GENERATION_HEADERS, PICTURE_PROBLEMS, TEXT_PROBLEMS, Responses, form_body, problems
from app.errors import ModelNotFoundError, TurboError, UnauthorizedError
from app.images.encoding import MediaType
from app.inference.generation import Encoding, Generated

router = APIRouter(tags=["OpenAI"])
_generations = APIRouter(route_class=route_taking(JSON))
_edits = APIRouter(route_class=route_taking(FORM))

_LICENCES = {"demo": "Apache-2.0", "fake": "none: there is no model"}
"""By what TURBO_MODEL says; all others are SDXL-Turbo, wherever its weights come from."""

_SDXL_TURBO_LICENCE = (
    "Stability AI's, for research and non-commercial use unless you hold another: "
    "https://huggingface.co/stabilityai/sdxl-turbo"
)
_LIMITS = [
    "It was not trained to show people or events truthfully, and must not be used to pretend so.",
    "It must not be used against Stability AI's use policy: https://stability.ai/use-policy",
    "Pictures of 512x512 are best. Legible text is not written. Faces and people may come out wrong.",
]
"""What the model card says (https://huggingface.co/stabilityai/sdxl-turbo, Uses; Limitations and Bias)."""


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
        "model": ImagesResponse,
        "description": "The pictures, or with `stream` an event with each.",
        "content": {"text/event-stream": {"schema": _COMPLETED_EVENT}},
        "headers": GENERATION_HEADERS,
    }
    return {200: images, **problems(*kinds, ModelNotFoundError)}


@_generations.post(
    "/v1/images/generations", responses=_images_responses(TEXT_PROBLEMS), operation_id="images_generations"
)
async def generations(body: GenerationsRequest, request: Request, context: Context) -> Response:
    """Make pictures from a prompt, as OpenAI's Images API does."""
    _begin(body, request, context)
    pictures = await generate_from_text(body, _encoding_of(body), request, context)
    return _answer(pictures, body, "image_generation.completed")


async def _read_edits_form(request: Request) -> AsyncIterator[EditsForm]:
    async with read_form(request, EditsForm, one_as_list="image") as form:
        yield form


@_edits.post(
    "/v1/images/edits",
    responses=_images_responses(PICTURE_PROBLEMS),
    operation_id="images_edits",
    openapi_extra=form_body(EditsForm),
)
async def edits(form: Annotated[EditsForm, Depends(_read_edits_form)], request: Request, context: Context) -> Response:
    """Make pictures from a prompt and a picture, as OpenAI's Images API does."""
    _begin(form, request, context)
    pictures = await generate_from_picture(form, lambda: read_upload(form.image), _encoding_of(form), request, context)
    return _answer(pictures, form, "image_edit.completed")


router.include_router(_generations)
router.include_router(_edits)


@router.get(
    "/v1/models",
    responses=problems(UnauthorizedError),
    operation_id="list_models",
    response_description="The one model, with its licence and limits.",
)
async def list_models(request: Request, context: Context) -> ModelList:
    """Name the model that is served, with its licence and limits."""
    context.access.identify(request)
    return ModelList(data=[_served(context)])


@router.get(
    "/v1/models/{model:path}",
    responses=problems(UnauthorizedError, ModelNotFoundError),
    operation_id="retrieve_model",
    response_description="The model, with its licence and limits.",
)
async def retrieve_model(model: str, request: Request, context: Context) -> Model:
    """Describe the model that is served."""
    context.access.identify(request)
    _check_model(model, context)
    return _served(context)


def _served(context: ApiContext) -> Model:
    model = context.registry.loaded.model
    owner, named, _ = model.partition("/")
    return Model(
        id=model,
        created=context.started,
        owned_by=owner if named else "sdxl-turbo-server",
        license=_LICENCES.get(context.settings.model.partition(":")[0], _SDXL_TURBO_LICENCE),
        limits=_LIMITS,
    )


def _check_model(model: str | None, context: ApiContext) -> None:
    served = context.registry.loaded.model
    if model is not None and model != served:
        raise ModelNotFoundError(f"The model served here is {served}: name it, or none.", param="model")


def _begin(wanted: GenerationsRequest | EditsForm, request: Request, context: ApiContext) -> None:
    _check_model(wanted.model, context)
    if wanted.caller:
        request.state.observer.facts["user"] = wanted.caller


def _encoding_of(wanted: GenerationsRequest | EditsForm) -> Encoding:
    return Encoding(media_type=MediaType(f"image/{wanted.output_format or 'png'}"), quality=wanted.output_compression)


def _answer(
    pictures: Generated,
    wanted: GenerationsRequest | EditsForm,
    event: Literal["image_generation.completed", "image_edit.completed"],
) -> Response:
    """Send all pictures in JSON, or each as a server-sent event.

    The stream begins when the pictures are there: so a request that fails has the status of its failure.
    """
    now = int(time.time())
    output_format = wanted.output_format or "png"
    size = f"{pictures.used.width}x{pictures.used.height}"
    usage = Usage.of_prompt(pictures.used.prompt_tokens)
    data = [
        GeneratedImage(b64_json=base64.b64encode(file).decode("ascii"), seed=seed)
        for file, seed in zip(pictures.files, pictures.seeds, strict=True)
    ]
    if not wanted.stream:
        body = ImagesResponse(created=now, data=data, output_format=output_format, size=size, usage=usage)
        return JSONResponse(body.model_dump(mode="json"), headers=generation_headers(pictures))
    events = [
        CompletedEvent(
            type=event,
            b64_json=image.b64_json,
            seed=image.seed,
            created_at=now,
            output_format=output_format,
            size=size,
            usage=usage,
            safety_identifier=wanted.caller,
        )
        for image in data
    ]
    stream = "".join(f"event: {event}\ndata: {one.model_dump_json(exclude_none=True)}\n\n" for one in events)
    return Response(stream, media_type="text/event-stream", headers=generation_headers(pictures))
