"""OpenAI's Images API: POST /v1/images/generations, POST /v1/images/edits, GET /v1/models."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from app.api.context import ApiContext, Context
from app.api.fields import Told
from app.api.forms import Form, FormItems, fields_of, read_uploads
from app.api.gate.generation_route import GenerationRoute
from app.api.generation import MakePictures, generation_headers, make_while_connected
from app.api.json_body import read_object
from app.api.openai import schemas
from app.api.openapi import (
    GENERATION_HEADERS,
    PICTURE_PROBLEMS,
    TEXT_PROBLEMS,
    TOLD_HEADERS,
    Responses,
    form_body,
    json_body,
    problems,
)
from app.api.picture_json import Encoded, PictureResponse, as_json
from app.errors import ModelNotFoundError, TurboError, UnauthorizedError
from app.images.encoding import MediaType
from app.inference.generation import Encoding, Generated

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
        "headers": {**GENERATION_HEADERS, **TOLD_HEADERS},
    }
    return {200: images, **problems(*kinds, ModelNotFoundError)}


@_pictures.post(
    "/v1/images/generations",
    responses=_images_responses(TEXT_PROBLEMS),
    operation_id="images_generations",
    openapi_extra=json_body(schemas.GenerationsRequest),
)
async def generations(request: Request, context: Context) -> Response:
    """Make pictures from a prompt, as OpenAI's Images API does."""
    sent = await read_object(request, required="prompt")
    wanted, told = _read(sent, schemas.GenerationsRequest, context)
    return await _answer(partial(context.generation.from_text, wanted), wanted, told, request)


@_pictures.post(
    "/v1/images/edits",
    responses=_images_responses(PICTURE_PROBLEMS),
    operation_id="images_edits",
    openapi_extra=form_body(schemas.EditsForm),
)
async def edits(form: Form, request: Request, context: Context) -> Response:
    """Change a picture, or the part of it that a mask shows, as OpenAI's Images API does."""
    wanted, told = _read(_with_one_image(form), schemas.EditsForm, context)
    uploads = read_uploads(image=wanted.image, mask=wanted.mask)
    return await _answer(partial(context.generation.from_uploads, wanted, uploads), wanted, told, request)


router.include_router(_pictures)


@router.get(
    "/v1/models",
    responses=problems(UnauthorizedError),
    operation_id="list_models",
    response_description="The served model, with its licence and limits, and the names that stand for it.",
    response_model_exclude_none=True,
)
async def list_models(request: Request, context: Context) -> schemas.ModelList:
    """Return the served model with its licence and limits, and the names that stand for it."""
    context.access.identify(request)
    return schemas.ModelList(data=[_served(context, alias) for alias in (None, *context.models.aliases)])


@router.get(
    "/v1/models/{model:path}",
    responses=problems(UnauthorizedError, ModelNotFoundError),
    operation_id="retrieve_model",
    response_description="The model, with its licence and limits.",
    response_model_exclude_none=True,
)
async def retrieve_model(model: str, request: Request, context: Context) -> schemas.Model:
    """Return the served model with its licence and limits."""
    context.access.identify(request)
    context.models.check(model or "(no name)")
    return _served(context, model if model in context.models.aliases else None)


def _served(context: ApiContext, alias: str | None = None) -> schemas.Model:
    """Describe the served model, under its own name or one that stands for it."""
    loaded = context.registry.loaded
    model = loaded.model
    owner, named, _ = model.partition("/")
    return schemas.Model(
        id=alias or model,
        created=context.started,
        owned_by=owner if named else "sdxl-turbo-server",
        license=_LICENCES.get(context.settings.model.partition(":")[0], _SDXL_TURBO_LICENCE),
        limits=_LIMITS,
        loras=[str(lora) for lora in loaded.loras] or None,
        alias_of=model if alias else None,
    )


def _with_one_image(form: FormItems) -> dict[str, Any]:
    """Return a form's fields; clients send a list as `image[]`, or repeat `image`."""
    images = [value for name, value in form if name in ("image", "image[]")]
    fields = fields_of([(name, value) for name, value in form if name not in ("image", "image[]")])
    return {**fields, "image": images if len(images) > 1 else images[0]} if images else fields


def _read(
    sent: Mapping[str, Any], model: type[schemas.AnyRequest], context: ApiContext
) -> tuple[schemas.AnyRequest, Told]:
    return schemas.read(
        sent,
        model,
        settings=context.settings,
        models=context.models,
        check_size=context.generation.check_size,
    )


async def _answer(make: MakePictures, wanted: schemas.ImagesRequest, told: Told, request: Request) -> Response:
    """Make pictures, and send all of them in JSON, or each as a server-sent event.

    A stream begins when all pictures are done, so a request that fails has its error's status.
    """
    if wanted.caller:
        request.state.observer.facts["user"] = wanted.caller
    media_type = MediaType(f"image/{wanted.output_format or 'png'}")
    encoding = Encoding(media_type=media_type, quality=wanted.output_compression)
    made = await make_while_connected(make, encoding, request)
    headers = {**generation_headers(made), **told.headers}
    if not wanted.stream:
        return PictureResponse(lambda encoded: as_json(_body(wanted, told, made, encoded)), made.files, headers=headers)
    events = partial(_events, wanted, told, made)
    return PictureResponse(events, made.files, headers=headers, media_type="text/event-stream")


def _body(wanted: schemas.ImagesRequest, told: Told, made: Generated, encoded: Encoded) -> dict[str, Any]:
    """Return the answer's JSON; `encoded` as in `PictureResponse`."""
    images = [
        schemas.GeneratedImage(url=f"data:{made.media_type};base64,{encoded(number)}", seed=seed)
        if wanted.as_url
        else schemas.GeneratedImage(b64_json=encoded(number), seed=seed)
        for number, seed in enumerate(made.seeds)
    ]
    return schemas.ImagesResponse(
        created=int(time.time()),
        data=images,
        output_format=wanted.output_format or "png",
        size=f"{made.used.width}x{made.used.height}",
        usage=schemas.Usage.of_prompt(made.used.prompt_tokens),
        model=made.used.model,
        warnings=told.warnings or None,
    ).model_dump(mode="json", exclude_none=True)


def _events(wanted: schemas.ImagesRequest, told: Told, made: Generated, encoded: Encoded) -> str:
    """Return the answer as server-sent events, one for each picture."""
    body = _body(wanted, told, made, encoded)
    images = body.pop("data")
    common = {"type": wanted.event, "created_at": body.pop("created"), "quality": "auto", **body}
    if wanted.caller:
        common["safety_identifier"] = wanted.caller
    return "".join(f"event: {wanted.event}\ndata: {as_json({**common, **image})}\n\n" for image in images)
