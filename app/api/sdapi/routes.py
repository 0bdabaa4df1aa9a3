"""POST /sdapi/v1/txt2img, /img2img and /png-info, and what the programs ask about the running request."""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from app.api.context import ApiContext, Context
from app.api.fields import Told, checked
from app.api.gate.generation_route import GenerationRoute
from app.api.generation import MakePictures, generation_headers, make_while_connected
from app.api.json_body import as_object
from app.api.large_json import Texts, read_large_json, take_picture
from app.api.openapi import (
    GENERATION_HEADERS,
    PICTURE_PROBLEMS,
    TEXT_PROBLEMS,
    TOLD_HEADERS,
    Responses,
    json_body,
    problems,
)
from app.api.picture_json import Encoded, PictureResponse, as_json
from app.api.sdapi import schemas
from app.api.sdapi.info import info_text, png_info, used_parameters
from app.errors import (
    BodyTooLargeError,
    ForbiddenOriginError,
    InterruptedRequestError,
    InvalidImageError,
    InvalidRequestError,
    MalformedBodyError,
    QueueFullError,
    RequestTimeoutError,
    UnauthorizedError,
    UnsupportedImageError,
)
from app.images.png_text import read_parameters
from app.inference.generation import Encoding, Generated

PREFIX = "/sdapi/v1"


class _LenientRoute(GenerationRoute):
    """A route whose JSON may have any media type or none: Dify sends none."""

    also_accepts = ("*",)


_BODY_PROBLEMS = (
    MalformedBodyError,
    UnauthorizedError,
    ForbiddenOriginError,
    RequestTimeoutError,
    BodyTooLargeError,
    InvalidRequestError,
    QueueFullError,
)

pictures = APIRouter(prefix=PREFIX, route_class=_LenientRoute, tags=["Stable Diffusion WebUI"])
about = APIRouter(prefix=PREFIX, tags=["Stable Diffusion WebUI"])


def _image_responses(kinds: tuple[type, ...]) -> Responses:
    images = {
        "model": schemas.SdImages,
        "description": "The pictures.",
        "headers": {**GENERATION_HEADERS, **TOLD_HEADERS},
    }
    return {200: images, **problems(*kinds, InterruptedRequestError)}


@pictures.post(
    "/txt2img",
    responses=_image_responses(TEXT_PROBLEMS),
    operation_id="sdapi_txt2img",
    openapi_extra=json_body(schemas.SdTxt2ImgRequest),
)
async def txt2img(request: Request, context: Context) -> Response:
    """Make pictures from a prompt, as Stable Diffusion WebUI does."""
    sent, _ = await _read_json(request, context, required="prompt")
    wanted, told = _read(sent, schemas.SdTxt2ImgRequest, context)
    return await _answer(partial(context.generation.from_text, wanted), wanted, told, request)


@pictures.post(
    "/img2img",
    responses=_image_responses(PICTURE_PROBLEMS),
    operation_id="sdapi_img2img",
    openapi_extra=json_body(schemas.SdInpaintRequest),
)
async def img2img(request: Request, context: Context) -> Response:
    """Change a picture, or the part of it that a mask shows, as Stable Diffusion WebUI does."""
    sent, texts = await _read_json(request, context, required="init_images")
    wanted: schemas.SdImg2ImgRequest
    if schemas.has_mask(sent):
        wanted, told = masked, _ = _read(sent, schemas.SdInpaintRequest, context)
        uploads = {"mask": take_picture(masked.mask, texts, param="mask")}
    else:
        wanted, told = _read(sent, schemas.SdImg2ImgRequest, context)
        uploads = {}
    uploads["image"] = take_picture(wanted.init_images[0], texts, param="init_images")
    texts.clear()
    return await _answer(partial(context.generation.from_uploads, wanted, uploads), wanted, told, request)


async def _read_json(request: Request, context: ApiContext, *, required: str) -> tuple[dict[str, Any], Texts]:
    max_bytes = context.settings.max_body_bytes
    sent, texts = await read_large_json(request.stream(), max_bytes=max_bytes, required=required)
    return as_object(sent), texts


def _read(
    sent: Mapping[str, Any], model: type[schemas.AnyRequest], context: ApiContext
) -> tuple[schemas.AnyRequest, Told]:
    return schemas.read(
        sent,
        model,
        models=context.models,
        settings=context.settings,
        loras=context.registry.loaded.loras,
        check_size=context.generation.check_size,
    )


async def _answer(make: MakePictures, wanted: schemas.SdRequest, told: Told, request: Request) -> Response:
    observer = request.state.observer
    observer.interruptible_by = observer.facts["client"]
    made = await make_while_connected(make, Encoding(), request)
    headers = {**generation_headers(made), **told.headers}
    return PictureResponse(partial(_body, wanted, told, made), made.files, headers=headers)


def _body(wanted: schemas.SdRequest, told: Told, made: Generated, encoded: Encoded) -> str:
    body = schemas.SdImages(
        images=[encoded(number) for number in range(len(made.files))] if wanted.send_images else [],
        parameters=used_parameters(wanted, made),
        info=info_text(wanted, made, told),
    )
    return as_json(body.model_dump(mode="json"))


@about.post(
    "/png-info",
    responses=problems(*_BODY_PROBLEMS, UnsupportedImageError, InvalidImageError),
    operation_id="sdapi_png_info",
    openapi_extra=json_body(schemas.PictureRequest),
    response_description="The text that the PNG has, and its parameters one by one.",
)
async def read_png_info(request: Request, context: Context) -> schemas.PngInfo:
    """Read the parameters that a PNG was made with."""
    _check_client(request, context)
    sent, texts = await _read_json(request, context, required="image")
    wanted = checked(schemas.PictureRequest, sent)
    decode = take_picture(wanted.image, texts, param="image")
    return await asyncio.to_thread(lambda: png_info(read_parameters(decode())))


@about.get(
    "/progress",
    responses=problems(UnauthorizedError),
    operation_id="sdapi_progress",
    response_description="The progress of the device, which all clients share.",
)
async def progress(request: Request, context: Context) -> schemas.Progress:
    """Return how far the running call is, by its expected time, and how long the queue will take."""
    context.access.identify(request)
    admission, lock = context.engine.admission, context.registry.lock
    running = next((place for place in admission.places if not place.waiting and not place.served), None)
    done, steps = 0.0, 0
    if running is not None and lock.serving and lock.serving_s > 0:
        done = min(0.99, lock.running_s / lock.serving_s)
        steps = running.request[0].effective_steps if running.request else 0
    waiting = admission.waiting
    state = schemas.ProgressState(
        job=running.request[0].mode if running is not None and running.request else "",
        job_count=admission.in_flight,
        sampling_step=int(done * steps),
        sampling_steps=steps,
    )
    return schemas.Progress(
        progress=round(done, 4),
        eta_relative=round(admission.backlog_s(), 3),
        state=state,
        textinfo=f"Waiting requests: {waiting}." if waiting else None,
    )


@about.post(
    "/interrupt",
    responses=problems(UnauthorizedError, ForbiddenOriginError),
    operation_id="sdapi_interrupt",
    response_description="Whether a request was dropped, and why not.",
)
async def interrupt(request: Request, context: Context) -> schemas.Interrupted:
    """Drop this client's waiting request, if it is the only one. A running call cannot be stopped."""
    client = _check_client(request, context)
    waiting = [place for place in context.engine.admission.places if place.waiting and place.interruptible_by == client]
    if not waiting:
        return schemas.Interrupted(
            interrupted=False, detail="No request of yours waits. A call that runs cannot be stopped."
        )
    if len(waiting) > 1:
        detail = f"{len(waiting)} requests of yours wait and cannot be told apart. Close the connection of one instead."
        return schemas.Interrupted(interrupted=False, detail=detail)
    waiting[0].end(InterruptedRequestError("The request was interrupted while it waited."))
    return schemas.Interrupted(interrupted=True, detail="The waiting request was dropped.")


@about.post(
    "/skip",
    responses=problems(UnauthorizedError, ForbiddenOriginError),
    operation_id="sdapi_skip",
    response_description="The same as for interrupt.",
)
async def skip(request: Request, context: Context) -> schemas.Interrupted:
    """Do what interrupt does: a request is one call, so there is nothing to skip to."""
    return await interrupt(request, context)


@about.post(
    "/options",
    responses={
        200: {"description": "The options are what they were.", "headers": TOLD_HEADERS},
        **problems(*_BODY_PROBLEMS),
    },
    operation_id="sdapi_set_options",
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}},
)
async def set_options(request: Request, context: Context) -> Response:
    """Accept the served model under any of its names. Other options cannot be changed and are ignored."""
    _check_client(request, context)
    sent, _ = await _read_json(request, context, required="sd_model_checkpoint")
    current = schemas.options_of(context.models, context.registry.loaded.vae).model_dump()
    told = schemas.read_options(sent, current, context.models, context.settings)
    return JSONResponse(None, headers=told.headers)


@about.post(
    "/refresh-checkpoints",
    responses=problems(UnauthorizedError, ForbiddenOriginError),
    operation_id="sdapi_refresh_checkpoints",
    response_description="Nothing: the list of models never changes.",
)
async def refresh_checkpoints(request: Request, context: Context) -> None:
    """Look for new models: there is one, as long as the service runs."""
    _check_client(request, context)


def _check_client(request: Request, context: ApiContext) -> str:
    context.access.check_origin(request)
    return context.access.identify(request)
