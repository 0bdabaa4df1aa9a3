"""The use case: from a request's fields, and an upload, to finished files. HTTP and the command line both call it."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, ClassVar, Protocol, TypeVar

from pydantic import BaseModel, Field

from app.errors import InvalidRequestError, TurboError
from app.images.encoding import MediaType, encode_image
from app.images.provenance import parameters_text, provenance_of
from app.images.sizes import Size
from app.inference.admission import Place
from app.inference.cost import Request
from app.inference.engine import Engine, GenerationResult
from app.modes.fields import Uploads
from app.pipelines.base import GenerationParams, Mode, PipelineImage
from app.settings import Settings

T = TypeVar("T")

_MOST_UPLOADS = 2
"""Pixels of an answer's pictures that are larger than `TURBO_MAX_PIXELS`, as a multiple of the largest upload's."""


class Fields(Protocol):
    """The checked fields of a request. `size_param` names the field that holds the size."""

    size_param: ClassVar[str]

    @property
    def chosen_size(self) -> Size | None:
        """The output's size, if the request names one."""


class TextFields(Fields, Protocol):
    """The fields of a request without files. `to_params` returns one params object per picture."""

    def to_params(self) -> Sequence[GenerationParams]: ...


class UploadFields(Fields, Protocol):
    """The fields of a request with files. `to_params` decodes them, and returns one params object per picture.

    `upload_params` has the names of the fields with files that are not called as in `Uploads`.
    """

    upload_params: ClassVar[Mapping[str, str]]

    def to_params(self, uploads: Uploads, settings: Settings, /) -> Sequence[GenerationParams]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """The format of the files, and for WebP and JPEG their quality, 0 to 100."""

    media_type: MediaType = MediaType.PNG
    quality: int | None = None


class UsedParameters(BaseModel):
    """The parameters that made the pictures, with defaults and drawn values filled in."""

    mode: Mode
    model: str
    prompt: str
    prompt_tokens: Annotated[int, Field(description="CLIP tokens used, with the start and end marks of each window.")]
    prompt_truncated: bool
    num_inference_steps: int
    effective_steps: int
    strength: float | None = None
    width: int
    height: int


class Timings(BaseModel):
    """Seconds that the request spent in each stage."""

    decode_s: Annotated[float, Field(description="Reading the uploaded picture.")] = 0.0
    queue_s: Annotated[float, Field(description="Waiting for the device.")]
    inference_s: Annotated[float, Field(description="On the device.")]
    encode_s: Annotated[float, Field(description="Writing the files.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """The files of one request, with a seed each. `batch_pictures` counts the pictures of its device call.

    `texts` has each picture's parameters, as files have them where `TURBO_IMAGE_METADATA` allows it.
    """

    files: Sequence[bytes]
    media_type: MediaType
    seeds: Sequence[int]
    texts: Sequence[str]
    used: UsedParameters
    timings: Timings
    batch_pictures: int


@dataclass(frozen=True, slots=True)
class Stage:
    """A finished stage: decode, queue, inference or encode. Its times are of the monotonic clock."""

    name: str
    started: float
    ended: float
    facts: Mapping[str, str | int]
    error: BaseException | None = None


class Observer:
    """Follows one request for traces, metrics, logs or progress. This one ignores everything."""

    interruptible_by: str | None = None
    """The client that may drop the request while it waits; None if nobody may."""

    def on_params(self, params: Request) -> None:
        """Note the pictures that the request asks for, before it waits for the device."""

    def on_stage(self, stage: Stage) -> None:
        """Note a stage that succeeded or failed."""

    def on_result(self, result: Generated) -> None:
        """Note the result of a request that succeeded."""


@dataclass(frozen=True)
class Generation:
    """Serves requests: admission, decoding, the device call, encoding. Lives on the event loop.

    `codec_threads` bounds the pictures that are decoded and encoded at once, and so their memory. After a timeout, the
    request's running codec work is finished and its waiting work is dropped.
    """

    engine: Engine
    settings: Settings
    codec_threads: ThreadPoolExecutor = field(kw_only=True)

    async def from_text(self, fields: TextFields, *, encoding: Encoding, observer: Observer) -> Generated:
        """Make pictures from a prompt.

        Raises:
            TurboError: The size is too large, the service has no capacity, or a stage failed.
        """
        self.check_pixels(fields)
        async with self.engine.admission.admit(interruptible_by=observer.interruptible_by) as place:
            return await self._make(fields.to_params(), place, encoding, observer, {})

    async def from_uploads(
        self, fields: UploadFields, uploads: Uploads, *, encoding: Encoding, observer: Observer
    ) -> Generated:
        """Make pictures from a prompt and uploaded files.

        Raises:
            TurboError: As `from_text`, or a file is not a usable picture.
        """
        self.check_pixels(fields)
        async with self.engine.admission.admit(interruptible_by=observer.interruptible_by) as place:
            seconds: dict[str, float] = {}
            with _stage("decode", observer, seconds):
                try:
                    params = await self._in_thread(lambda: fields.to_params(uploads, self.settings))
                except TurboError as error:
                    error.param = fields.upload_params.get(error.param or "", error.param)
                    raise
            return await self._make(params, place, encoding, observer, seconds)

    def check_pixels(self, fields: Fields) -> None:
        """Check the request's size against `TURBO_MAX_PIXELS`.

        Raises:
            InvalidRequestError: The size has too many pixels.
        """
        if fields.chosen_size is not None:
            self.check_size(fields.chosen_size, fields.size_param)

    def check_size(self, size: Size, param: str) -> None:
        """Check a size against `TURBO_MAX_PIXELS`; `param` names its field.

        Raises:
            InvalidRequestError: The size has too many pixels.
        """
        max_pixels = self.settings.max_pixels
        if size.pixels > max_pixels:
            raise InvalidRequestError(
                f"width x height is {size.pixels} pixels, and at most {max_pixels} may be asked for.", param=param
            )

    async def _make(
        self, params: Request, place: Place, encoding: Encoding, observer: Observer, seconds: dict[str, float]
    ) -> Generated:
        self._check_answer(params)
        observer.on_params(params)
        made = await self._on_device(params, place, observer)
        seconds.update(queue=made.queue_s, inference=made.inference_s)
        with _stage("encode", observer, seconds, media_type=encoding.media_type, pictures=len(params)):
            encoded = [
                self._in_thread(partial(self._encode, image, one, encoding))
                for image, one in zip(made.images, params, strict=True)
            ]
            files = await asyncio.gather(*encoded)
        loaded = self.engine.registry.loaded
        result = Generated(
            files=files,
            media_type=encoding.media_type,
            seeds=[one.seed for one in params],
            texts=[parameters_text(one, model=loaded.model, vae=loaded.vae, loras=loaded.loras) for one in params],
            used=self._used(params[0], made.images[0]),
            timings=Timings(**{f"{stage}_s": round(spent_s, 6) for stage, spent_s in seconds.items()}),
            batch_pictures=made.batch_pictures,
        )
        observer.on_result(result)
        return result

    def _check_answer(self, params: Request) -> None:
        """Bound the pixels of an answer: an inpainted picture has the upload's size, and all are in memory at once.

        Raises:
            InvalidRequestError: There are too many.
        """
        width, height = params[0].finished_size
        most = max(1, _MOST_UPLOADS * self.settings.max_upload_pixels // (width * height))
        if len(params) > most and width * height > self.settings.max_pixels:
            raise InvalidRequestError(f"Of pictures of {width}x{height}, a request makes at most {most}.")

    async def _on_device(self, params: Request, place: Place, observer: Observer) -> GenerationResult:
        """Wait for the device and its call, and report both as stages, also if they fail."""
        started, call, failure, loaded = time.monotonic(), {}, None, self.engine.registry.loaded
        try:
            made = await self.engine.generate(params, place)
            call = {"call": made.call, "batch_pictures": made.batch_pictures}
        except BaseException as error:
            failure = error
            raise
        finally:
            ended, first = time.monotonic(), params[0]
            facts: dict[str, str | int] = {
                "model": loaded.model,
                "device": loaded.device_name,
                "mode": first.mode,
                "steps": first.effective_steps,
                "size": f"{first.width}x{first.height}",
                "pictures": len(params),
            }
            if place.waiting:
                observer.on_stage(Stage("queue", started, ended, facts, failure))
            else:
                observer.on_stage(Stage("queue", started, place.turn_at, facts))
                observer.on_stage(Stage("inference", place.turn_at, ended, {**facts, **call}, failure))
        return made

    def _encode(self, image: PipelineImage, params: GenerationParams, encoding: Encoding) -> bytes:
        """Finish a picture, and return its file, with its watermark and the allowed metadata. On a codec thread."""
        loaded = self.engine.registry.loaded
        pixels = params.finish(image.pixels)
        if loaded.watermark is not None:
            pixels = loaded.watermark(pixels)
        provenance = provenance_of(params, pixels, loaded.model, self.settings, vae=loaded.vae, loras=loaded.loras)
        return encode_image(pixels, encoding.media_type, quality=encoding.quality, provenance=provenance)

    def _used(self, params: GenerationParams, image: PipelineImage) -> UsedParameters:
        return UsedParameters(
            mode=params.mode,
            model=self.engine.registry.loaded.model,
            prompt=params.prompt,
            prompt_tokens=image.prompt_tokens,
            prompt_truncated=image.prompt_truncated,
            num_inference_steps=params.num_inference_steps,
            effective_steps=params.effective_steps,
            strength=params.strength,
            width=params.finished_size[0],
            height=params.finished_size[1],
        )

    def _in_thread(self, work: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self.codec_threads, work)


@contextmanager
def _stage(name: str, observer: Observer, seconds: dict[str, float], **facts: str | int) -> Iterator[None]:
    """Time the body of the `with`, and report it, also if it failed."""
    started, failure = time.monotonic(), None
    try:
        yield
    except BaseException as error:
        failure = error
        raise
    finally:
        ended = time.monotonic()
        seconds[name] = ended - started
        observer.on_stage(Stage(name, started, ended, facts, failure))
