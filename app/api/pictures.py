"""From checked fields to pictures in files: what the routes of all dialects share."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, ClassVar, Protocol, TypeVar

from fastapi import Request, UploadFile
from PIL import Image

from app.api.context import ApiContext
from app.api.schemas import Timings, UsedParameters
from app.errors import ClientDisconnectedError, InvalidRequestError
from app.inference.engine import GenerationResult, Place
from app.inference.image_codec import MediaType, Size, decode_image, encode_image
from app.inference.memory import reserve
from app.inference.provenance import provenance_of
from app.pipelines.base import GenerationParams, Img2ImgParams, LoadedPipelines, PipelineImage, Txt2ImgParams
from app.settings import Settings
from app.tracing import Trace

T = TypeVar("T")

_READ_AT_ONCE_BYTES = 1 << 18


class TextFields(Protocol):
    """The fields of a request for pictures from a prompt. `size_param` names the one that the size stands in."""

    size_param: ClassVar[str]

    @property
    def chosen_size(self) -> Size | None:
        """The output's size, where the request names one."""

    def to_params(self) -> Sequence[Txt2ImgParams]:
        """Return one params object per picture."""


class PictureFields(Protocol):
    """The fields of a request for pictures from a prompt and a picture; as above."""

    size_param: ClassVar[str]

    @property
    def chosen_size(self) -> Size | None:
        """The output's size, where the request names one."""

    def to_params(self, image: Image.Image, /) -> Sequence[Img2ImgParams]:
        """Return one params object per picture, each starting from `image` (RGB, of the output's size)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """What files are to be written: their format, and for WebP and JPEG how good, from 0 to 100."""

    media_type: MediaType = MediaType.PNG
    quality: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """The pictures of one request, as files, and what there is to say of them. `seeds` has one for each."""

    files: Sequence[bytes]
    media_type: MediaType
    seeds: Sequence[int]
    used: UsedParameters
    timings: Timings

    @property
    def headers(self) -> dict[str, str]:
        """What the answer's header says."""
        headers = {
            "X-Seed": str(self.seeds[0]),
            "X-Steps": str(self.used.effective_steps),
            "X-Image-Size": f"{self.used.width}x{self.used.height}",
            "X-Prompt-Tokens": str(self.used.prompt_tokens),
            "Server-Timing": _server_timing(self.timings),
            "Cache-Control": "no-store",
        }
        if self.used.prompt_truncated:
            headers["X-Prompt-Truncated"] = "true"
        return headers


async def make_from_text(fields: TextFields, encoding: Encoding, request: Request, context: ApiContext) -> Pictures:
    """Make the pictures, unless the client leaves meanwhile.

    Raises:
        TurboError: There is no place, or it failed.
    """
    check_pixels(fields, context.settings)

    async def make() -> Pictures:
        async with context.engine.admit() as place:
            params = fields.to_params()
            result = await _generate(params, place, request, context)
            return await _encode(result, params, encoding, request, context)

    return await _while_connected(request, make())


async def make_from_picture(
    fields: PictureFields,
    read: Callable[[], Awaitable[bytes | memoryview]],
    encoding: Encoding,
    request: Request,
    context: ApiContext,
) -> Pictures:
    """Make the pictures from the file that `read` returns, unless the client leaves meanwhile.

    None of the file's bytes are kept while the request waits for the device.

    Raises:
        TurboError: There is no place, the file is no picture, or it failed.
    """
    check_pixels(fields, context.settings)

    async def make() -> Pictures:
        async with context.engine.admit() as place:
            started = time.monotonic()
            with _trace_of(request).stage("decode"):
                image = await _decode(await read(), fields.chosen_size, context)
            decode_s = time.monotonic() - started
            params = fields.to_params(image)
            result = await _generate(params, place, request, context)
            return await _encode(result, params, encoding, request, context, decode_s=decode_s)

    return await _while_connected(request, make())


async def read_upload(upload: UploadFile) -> bytes | memoryview:
    """Return an uploaded file's bytes, and keep them no longer, in memory or on disk."""
    data = await asyncio.to_thread(_read, upload.file, upload.size or 0)
    await upload.close()
    return data


def _read(file: BinaryIO, size_bytes: int) -> bytes | memoryview:
    if size_bytes <= _READ_AT_ONCE_BYTES:
        return file.read()
    memory = reserve(size_bytes)
    for at in range(0, size_bytes, _READ_AT_ONCE_BYTES):
        piece = file.read(_READ_AT_ONCE_BYTES)
        memory[at : at + len(piece)] = piece
    return memoryview(memory)


async def _decode(data: bytes | memoryview, size: Size | None, context: ApiContext) -> Image.Image:
    decode = partial(
        decode_image,
        data,
        size=size,
        max_upload_pixels=context.settings.max_upload_pixels,
        max_pixels=context.settings.max_pixels,
    )
    return await asyncio.get_running_loop().run_in_executor(context.codec_threads, decode)


def check_pixels(fields: TextFields | PictureFields, settings: Settings) -> None:
    """Check the rule that depends on a setting, and so cannot stand in the schema.

    Raises:
        InvalidRequestError: The size has too many pixels.
    """
    size = fields.chosen_size
    if size is not None and size.pixels > settings.max_pixels:
        raise InvalidRequestError(
            f"width x height is {size.pixels} pixels, and at most {settings.max_pixels} may be asked for.",
            param=fields.size_param,
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


async def _generate(
    params: Sequence[GenerationParams], place: Place, request: Request, context: ApiContext
) -> GenerationResult:
    work = context.engine.generate(params, place)
    return await _trace_of(request).device(work, params, place, context.registry.loaded)


def _trace_of(request: Request) -> Trace:
    """Return the trace that the edge began for the request."""
    trace: Trace = request.state.trace
    return trace


async def _encode(
    result: GenerationResult,
    params: Sequence[GenerationParams],
    encoding: Encoding,
    request: Request,
    context: ApiContext,
    *,
    decode_s: float = 0.0,
) -> Pictures:
    """Write the pictures, and down what they took."""
    started = time.monotonic()
    loaded = context.registry.loaded
    loop = asyncio.get_running_loop()
    with _trace_of(request).stage("encode", media_type=encoding.media_type, pictures=len(params)):
        files = await asyncio.gather(
            *(
                loop.run_in_executor(
                    context.codec_threads,
                    partial(write_picture, made, asked, encoding, loaded, context.settings),
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
    pictures = Pictures(
        files=files,
        media_type=encoding.media_type,
        seeds=[asked.seed for asked in params],
        used=used_parameters(params[0], result.images[0], model=loaded.model),
        timings=timings,
    )
    _record(pictures, result.batch_pictures, request, context)
    return pictures


def write_picture(
    made: PipelineImage, asked: GenerationParams, encoding: Encoding, loaded: LoadedPipelines, settings: Settings
) -> bytes:
    """Return a picture's file, with what the operator lets it say about itself. Blocks; call it in a thread."""
    pixels = made.pixels if loaded.watermark is None else loaded.watermark(made.pixels)
    provenance = provenance_of(
        asked,
        pixels,
        model=loaded.model,
        tell_parameters=settings.image_metadata,
        ai_label=settings.ai_label,
        aigc_producer=settings.aigc_producer,
    )
    return encode_image(pixels, encoding.media_type, quality=encoding.quality, provenance=provenance)


def used_parameters(params: GenerationParams, made: PipelineImage, *, model: str) -> UsedParameters:
    """Say what a picture was made with."""
    return UsedParameters(
        mode=params.mode,
        model=model,
        prompt=params.prompt,
        prompt_tokens=made.prompt_tokens,
        prompt_truncated=made.prompt_truncated,
        num_inference_steps=params.num_inference_steps,
        effective_steps=params.effective_steps,
        strength=params.strength if isinstance(params, Img2ImgParams) else None,
        width=params.width,
        height=params.height,
    )


def _record(pictures: Pictures, batch_pictures: int, request: Request, context: ApiContext) -> None:
    used, timings = pictures.used, pictures.timings
    context.metrics.record_pictures(
        mode=used.mode,
        media_type=pictures.media_type,
        pictures=len(pictures.files),
        batch_pictures=batch_pictures,
        decode_s=timings.decode_s or None,
        queue_s=timings.queue_s,
        inference_s=timings.inference_s,
        encode_s=timings.encode_s,
    )
    request.state.log.update(
        mode=used.mode,
        seed=pictures.seeds[0],
        steps=used.effective_steps,
        size=f"{used.width}x{used.height}",
        batch=batch_pictures,
        **timings.model_dump(),
    )
    if context.settings.log_prompts:
        request.state.log["prompt"] = used.prompt


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
