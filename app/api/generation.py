"""POST /txt2img and POST /img2img: decode, generate, encode."""

import asyncio
import base64
import codecs
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from PIL import Image
from pydantic import ValidationError
from python_multipart.multipart import parse_options_header

from app.api.context import ApiContext, Context
from app.api.negotiation import JSON, choose_media_type
from app.api.openapi import FORM, GENERATION_RESPONSES, IMG2IMG_BODY
from app.api.schemas import EncodedImage, Envelope, Img2ImgForm, Timings, Txt2ImgRequest, UsedParameters
from app.errors import ClientDisconnectedError, InvalidRequestError, MalformedBodyError, UnsupportedMediaTypeError
from app.inference.engine import GenerationResult
from app.inference.image_codec import MediaType, Size, decode_image, encode_image, parameters_text
from app.pipelines.base import GenerationParams, Img2ImgParams

T = TypeVar("T")

_MAX_FILES, _MAX_FIELDS = 4, 32
"""Parts that a form may have; more than any form needs, so that a field too many is named and not a part counted."""

_CHARSETS = frozenset({"utf-8", "ascii", "iso8859-1", "cp1252"})
"""What a form may be in. Python knows a hundred more, and some of them (punycode) take minutes for a megabyte."""


class _GenerationRoute(APIRoute):
    """Refuses before it reads: who may not ask, a body of another type, and any body while there is no place for it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        takes = FORM if self.path.endswith("/img2img") else JSON

        async def handle_checked(request: Request) -> Response:
            context: ApiContext = request.app.state.context
            context.access.check_origin(request)
            client = request.state.log["client"] = context.access.identify(request)
            sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if sent != takes:
                raise UnsupportedMediaTypeError(f"Send {takes}, not {sent or 'a body without Content-Type'}.")
            context.engine.check_admission()
            context.access.count(client)  # last: who is refused for want of a place has had nothing
            return await handle(request)

        return handle_checked


router = APIRouter(route_class=_GenerationRoute, tags=["generation"])


@router.post("/txt2img", response_class=Response, responses=GENERATION_RESPONSES, operation_id="txt2img")
async def txt2img(body: Txt2ImgRequest, request: Request, context: Context) -> Response:
    """Make pictures from a prompt."""
    media_type = choose_media_type(_accept(request), num_images=body.num_images)
    _check_pixels(body.size, context)
    return await _while_connected(request, _generate_from_text(body, request, context, media_type))


async def _read_form(request: Request) -> AsyncIterator[Img2ImgForm]:
    """Read the multipart form.

    FastAPI's own reading takes an empty prompt for a missing one, and of a field that is sent twice the last.
    """
    _check_charset(request.headers["content-type"])
    form = await request.form(max_files=_MAX_FILES, max_fields=_MAX_FIELDS)
    try:
        names = [name for name, _ in form.multi_items()]
        for name in names:
            if names.count(name) > 1:
                raise InvalidRequestError(f"{name} is sent twice.", param=name)
        try:
            fields = Img2ImgForm.model_validate(dict(form))
        except ValidationError as error:
            faults = [{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]
            raise RequestValidationError(faults) from error
        yield fields
    finally:
        await form.close()


def _check_charset(content_type: str) -> None:
    """Let in what can be decoded in no time; Starlette takes whatever Python has a codec for."""
    _, options = parse_options_header(content_type)
    try:
        known = codecs.lookup(options.get(b"charset", b"utf-8").decode("latin-1")).name in _CHARSETS
    except (LookupError, ValueError):
        known = False
    if not known:
        raise MalformedBodyError("A form must be in UTF-8.")


@router.post(
    "/img2img",
    response_class=Response,
    responses=GENERATION_RESPONSES,
    operation_id="img2img",
    openapi_extra=IMG2IMG_BODY,
)
async def img2img(form: Annotated[Img2ImgForm, Depends(_read_form)], request: Request, context: Context) -> Response:
    """Make pictures from a prompt and a picture."""
    media_type = choose_media_type(_accept(request), num_images=form.num_images)
    _check_pixels(form.size, context)
    return await _while_connected(request, _generate_from_image(form, request, context, media_type))


async def _generate_from_text(body: Txt2ImgRequest, request: Request, context: ApiContext, media_type: str) -> Response:
    async with context.engine.admit() as place:
        params = body.to_params()
        result = await context.engine.generate(params, place)
        return await _encode(result, params, request, context, media_type)


async def _generate_from_image(form: Img2ImgForm, request: Request, context: ApiContext, media_type: str) -> Response:
    async with context.engine.admit() as place:
        started = time.monotonic()
        image = await _read_image(form, context)
        decode_s = time.monotonic() - started
        params = form.to_params(image)
        result = await context.engine.generate(params, place)
        return await _encode(result, params, request, context, media_type, decode_s=decode_s)


async def _read_image(form: Img2ImgForm, context: ApiContext) -> Image.Image:
    """Decode the upload, and keep none of its bytes, in memory or on disk, while the request waits for the device."""
    data = await form.image.read()
    await form.image.close()
    decode = partial(
        decode_image,
        data,
        size=form.size,
        max_upload_pixels=context.settings.max_upload_pixels,
        max_pixels=context.settings.max_pixels,
    )
    return await asyncio.get_running_loop().run_in_executor(context.codec_threads, decode)


def _accept(request: Request) -> str:
    return ", ".join(request.headers.getlist("accept"))


def _check_pixels(size: Size | None, context: ApiContext) -> None:
    """Check the rule that depends on a setting, and so cannot stand in the schema."""
    if size is not None and size.pixels > context.settings.max_pixels:
        raise InvalidRequestError(
            f"width x height is {size.pixels} pixels, and at most {context.settings.max_pixels} may be asked for.",
            param="width",
        )


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, and drop it as soon as the client hangs up."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnectedError("The client hung up before its answer.")
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _encode(
    result: GenerationResult,
    params: Sequence[GenerationParams],
    request: Request,
    context: ApiContext,
    media_type: str,
    *,
    decode_s: float = 0.0,
) -> Response:
    """Write the pictures and everything that the answer says about them."""
    started = time.monotonic()
    model = context.registry.loaded.model
    picture_type = MediaType.PNG if media_type == JSON else MediaType(media_type)
    loop = asyncio.get_running_loop()
    files = await asyncio.gather(
        *(
            loop.run_in_executor(
                context.codec_threads,
                partial(encode_image, made.pixels, picture_type, text=_text(asked, context, model)),
            )
            for made, asked in zip(result.images, params, strict=True)
        )
    )
    timings = Timings(
        decode_s=round(decode_s, 6),
        queue_s=round(result.queue_s, 6),
        inference_s=round(result.inference_s, 6),
        encode_s=round(time.monotonic() - started, 6),
    )
    used = _used_parameters(params[0], result, model)
    request.state.log["batch"] = result.batch_pictures
    context.metrics.batch_pictures.labels(used.mode).observe(result.batch_pictures)
    _record(used, timings, params[0].seed, request, context)
    headers = _headers(used, timings, params[0].seed)
    if media_type != JSON:
        return Response(files[0], media_type=picture_type, headers=headers)
    images = [
        EncodedImage(b64=base64.b64encode(file).decode("ascii"), seed=asked.seed, media_type=picture_type)
        for file, asked in zip(files, params, strict=True)
    ]
    envelope = Envelope(images=images, parameters=used, timings=timings)
    return JSONResponse(envelope.model_dump(mode="json", exclude_none=True), headers=headers)


def _text(params: GenerationParams, context: ApiContext, model: str) -> str | None:
    """Return what a PNG says about itself, if it may."""
    if not context.settings.image_metadata:
        return None
    return parameters_text(
        prompt=params.prompt,
        steps=params.num_inference_steps,
        seed=params.seed,
        size=Size(params.width, params.height),
        model=model,
        strength=params.strength if isinstance(params, Img2ImgParams) else None,
    )


def _used_parameters(params: GenerationParams, result: GenerationResult, model: str) -> UsedParameters:
    return UsedParameters(
        mode=params.mode,
        model=model,
        prompt=params.prompt,
        prompt_tokens=result.images[0].prompt_tokens,
        prompt_truncated=result.images[0].prompt_truncated,
        num_inference_steps=params.num_inference_steps,
        effective_steps=params.effective_steps,
        strength=params.strength if isinstance(params, Img2ImgParams) else None,
        width=params.width,
        height=params.height,
    )


def _record(used: UsedParameters, timings: Timings, seed: int, request: Request, context: ApiContext) -> None:
    context.metrics.queue_seconds.labels(used.mode).observe(timings.queue_s)
    context.metrics.inference_seconds.labels(used.mode).observe(timings.inference_s)
    request.state.log.update(
        mode=used.mode,
        seed=seed,
        steps=used.effective_steps,
        size=f"{used.width}x{used.height}",
        **timings.model_dump(),
    )
    if context.settings.log_prompts:
        request.state.log["prompt"] = used.prompt


def _headers(used: UsedParameters, timings: Timings, seed: int) -> dict[str, str]:
    headers = {
        "X-Seed": str(seed),
        "X-Steps": str(used.effective_steps),
        "X-Image-Size": f"{used.width}x{used.height}",
        "X-Prompt-Tokens": str(used.prompt_tokens),
        "Server-Timing": _server_timing(timings),
        "Vary": "Accept",
        "Cache-Control": "no-store",
    }
    if used.prompt_truncated:
        headers["X-Prompt-Truncated"] = "true"
    return headers


def _server_timing(timings: Timings) -> str:
    """Write the stages as the W3C's Server-Timing header: milliseconds."""
    stages = {
        "decode": timings.decode_s,
        "queue": timings.queue_s,
        "inference": timings.inference_s,
        "encode": timings.encode_s,
    }
    return ", ".join(
        f"{name};dur={seconds * 1000:.1f}" for name, seconds in stages.items() if name != "decode" or seconds
    )
