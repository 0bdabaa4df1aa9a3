"""Pictures without a server: one request, checked and made as the service does it, and written to files."""

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TextIO

from pydantic import ValidationError

from app.api.pictures import Encoding, check_pixels, used_parameters, write_picture
from app.api.schemas import Img2ImgFields, Txt2ImgRequest, UsedParameters
from app.errors import (
    DeviceLostError,
    DeviceOutOfMemoryError,
    DeviceUnavailableError,
    InferenceError,
    InvalidRequestError,
    StartError,
    TurboError,
    first_line,
)
from app.inference.device_lock import DeviceLock
from app.inference.device_watch import unless_hung
from app.inference.image_codec import decode_image
from app.inference.registry import PipelineRegistry
from app.main import load_model
from app.picture_files import STDOUT, PictureFiles
from app.pipelines.base import GenerationParams, LoadedPipelines, PipelineImage
from app.settings import Settings, parse_sizes
from app.stdout import own_stdout

_log = logging.getLogger(__name__)

_FAILED, _REFUSED, _CANNOT_START = 1, 2, 3
"""Exit codes; `python -m app generate --help` says when."""

_STDIN = "-"

_CLIENT_ERRORS = range(400, 500)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is asked for at the command line.

    Attributes:
        fields: The request's fields that are given, by their names on the wire, as text; a prompt of `-` is on stdin.
        image: File of the picture to start from, if there is one; `-` is stdin.
        output: File to write; `-` is stdout. Without one the pictures are new files in this folder.
        as_json: Whether stdout gets JSON instead of the files' names.
    """

    fields: Mapping[str, str]
    image: str | None = None
    output: str | None = None
    as_json: bool = False


def generate(order: Order, settings: Settings) -> int:
    """Make the pictures of one request, write them, and return the process's exit code.

    Stdout gets the files' names, or JSON, or the picture itself; stderr what people want to know meanwhile. A signal
    ends the process. So should the caller, with the exit code: the device thread may still be in a call.
    """
    progress = _Progress()
    try:
        _make_and_write(order, settings, progress)
    except ValidationError as error:
        for fault in error.errors():
            name = fault.get("ctx", {}).get("param") or str(fault["loc"][0])
            progress.say(f"{_option(name)}: {fault['msg']}")
        return _REFUSED
    except TurboError as error:
        _log.debug("failed", exc_info=error)
        if error.status in _CLIENT_ERRORS:
            progress.say(f"{_option(error.param)}: {error}" if error.param else str(error))
            return _REFUSED
        if isinstance(error, DeviceLostError):
            progress.say(f"{error.what_failed} {error.remedy}".rstrip())
            return _CANNOT_START
        progress.say(str(error))
        return _CANNOT_START if isinstance(error, StartError) else _FAILED
    except OSError as error:
        progress.say(f"{error.filename or 'stdout'} cannot be written: {error.strerror}.")
        return _FAILED
    return 0


def _option(name: str) -> str:
    return "PROMPT" if name == "prompt" else f"--{name.replace('_', '-')}"


class _Progress:
    """What people are told on stderr; on a terminal with the seconds that it has taken so far, on one line."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._text = ""
        self._since = 0.0

    def begin(self, text: str) -> None:
        self._text, self._since = text, time.monotonic()
        if self.live:
            self.tick()
        else:
            self.say(text)

    def tick(self) -> None:
        if self.live:  # the cursor stays at the line's begin, so that whatever comes next is written over it
            self._write(f"\x1b[2K{self._text}  {time.monotonic() - self._since:.1f} s\r")

    def say(self, line: str) -> None:
        self.clear()
        self._write(f"{line}\n")

    def clear(self) -> None:
        if self.live:
            self._write("\x1b[2K")

    def _write(self, text: str) -> None:
        with suppress(OSError):  # a full disk under stderr costs nobody the picture
            print(text, end="", file=sys.stderr, flush=True)  # noqa: T201


def _make_and_write(order: Order, settings: Settings, progress: _Progress) -> None:
    timings: dict[str, float] = {}
    with own_stdout() as stdout:
        request, picture = _read_request(order)
        check_pixels(request, settings)
        if order.output == STDOUT and order.as_json:
            raise InvalidRequestError("The picture and JSON cannot both go to stdout.", param="json")
        if order.output == STDOUT and sys.stdout is None:
            raise InvalidRequestError("Stdout is closed.", param="output")
        files = PictureFiles(order.output, count=request.num_images, stdout=stdout)
        _end_on_signals(files, progress)
        with _timed(timings, "decode_s"):
            params = _to_params(request, picture, settings)
        loaded, images = asyncio.run(_make(params, settings, progress, timings))
        with _timed(timings, "encode_s"):
            encoding = Encoding(media_type=files.media_type)
            encoded = [
                write_picture(made, asked, encoding, loaded, settings)
                for made, asked in zip(images, params, strict=True)
            ]
        names = []
        for number, (asked, file) in enumerate(zip(params, encoded, strict=True)):
            names.append(files.write(number, asked, file))
            seconds = timings["inference_s"] / len(params)
            progress.say(f"{names[-1]}  {asked.width}x{asked.height}  seed {asked.seed}  {seconds:.1f} s")
        used = used_parameters(params[0], images[0], model=loaded.model)
        if used.prompt_truncated:
            progress.say(f"The prompt is longer than CLIP reads: it was cut at {used.prompt_tokens} tokens.")
        with suppress(BrokenPipeError):  # whoever reads it has read enough
            if order.as_json:
                shown = [
                    {"file": name, "seed": asked.seed, "media_type": files.media_type}
                    for name, asked in zip(names, params, strict=True)
                ]
                _print_json(stdout, images=shown, parameters=used, timings=timings)
            elif order.output != STDOUT and not (progress.live and stdout.isatty()):  # which shows them already
                print(*names, sep="\n", file=stdout, flush=True)


def _print_json(stdout: TextIO, *, parameters: UsedParameters, **others: object) -> None:
    """Print what the service's envelope says, with files in place of the pictures."""
    answer = {"parameters": parameters.model_dump(mode="json", exclude_none=True), **others}
    print(json.dumps(answer, indent=1), file=stdout, flush=True)


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    timings[stage] = round(time.monotonic() - started, 6)


def _read_request(order: Order) -> tuple[Txt2ImgRequest | Img2ImgFields, bytes]:
    """Check the request by the models that check those of HTTP, and return it with the picture's file."""
    fields = dict(order.fields)
    if order.image is None and "strength" in fields:
        raise InvalidRequestError("It says how much of --image may change, and there is none.", param="strength")
    if fields["prompt"] == order.image == _STDIN:
        raise InvalidRequestError("The prompt and the picture cannot both be on stdin.", param="image")
    if fields["prompt"] == _STDIN:
        # What is no UTF-8 is refused as it is in an argument, where Python leaves it in the same way.
        fields["prompt"] = _read_stdin("prompt").decode("utf-8", "surrogateescape").rstrip("\r\n")
    if order.image is None:
        return Txt2ImgRequest.model_validate(fields, strict=False), b""  # numbers are text here, as in a form
    request = Img2ImgFields.model_validate(fields)
    try:
        return request, _read_stdin("image") if order.image == _STDIN else Path(order.image).read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"{order.image} cannot be read: {error.strerror}.", param="image") from error


def _read_stdin(param: str) -> bytes:
    if sys.stdin is None:
        raise InvalidRequestError("Stdin is closed.", param=param)
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise InvalidRequestError(f"Stdin cannot be read: {error.strerror}.", param=param) from error


def _to_params(
    request: Txt2ImgRequest | Img2ImgFields, picture: bytes, settings: Settings
) -> Sequence[GenerationParams]:
    if isinstance(request, Txt2ImgRequest):
        return request.to_params()
    image = decode_image(
        picture,
        size=request.chosen_size,
        max_upload_pixels=settings.max_upload_pixels,
        max_pixels=settings.max_pixels,
    )
    return request.to_params(image)


def _end_on_signals(files: PictureFiles, progress: _Progress) -> None:
    """Have a signal end the process at once, whatever the device thread does, and leave nothing unfinished."""

    def end(number: int, _: FrameType | None) -> None:
        files.discard()
        with suppress(RuntimeError):  # Python's complaint of a reentrant call
            progress.clear()
        os._exit(128 + number)

    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, end)


async def _make(
    params: Sequence[GenerationParams], settings: Settings, progress: _Progress, timings: dict[str, float]
) -> tuple[LoadedPipelines, Sequence[PipelineImage]]:
    """Load the model and make the pictures in one call on the device thread, as the service does, but without warm-up.

    Raises:
        StartError: The weights or the device cannot be used.
        DeviceLostError: The device failed.
        TurboError: The pictures could not be made.
    """
    device_lock = DeviceLock(hang_limit_s=settings.hang_limit_s)
    if settings.batching == "exact":  # which gives the bytes of pictures that are made one by one, but tries that first
        settings = settings.model_copy(update={"batching": "off"})
    sizes = parse_sizes(settings.warm_up_sizes)
    registry = PipelineRegistry(partial(load_model, settings), device_lock, warm_up_sizes=sizes, warm_up=False)
    async with AsyncExitStack() as stack:
        progress.begin(f"loading {settings.model}")
        with _timed(timings, "load_s"):
            try:
                await unless_hung(stack.enter_async_context(registry), device_lock, on_tick=progress.tick)
            except DeviceOutOfMemoryError as error:
                raise DeviceUnavailableError("The device has no memory for the weights.") from error
            except TurboError:
                raise
            except Exception as error:
                raise StartError(f"The model cannot be loaded: {_named(error)}.") from error
        progress.begin(_announcement(params, registry.loaded.device_name))
        with _timed(timings, "inference_s"):
            limit_s = registry.loaded.warm_up_limits * registry.hang_limit_s(params)  # as of every first call
            call = device_lock.run(partial(registry.call, [params]), limit_s=limit_s)
            (outcome,) = await unless_hung(call, device_lock, on_tick=progress.tick)
        if isinstance(outcome, TurboError):
            raise outcome
        if isinstance(outcome, Exception):
            raise InferenceError(f"The pipeline failed on this request: {_named(outcome)}.") from outcome
        return registry.loaded, outcome


def _announcement(params: Sequence[GenerationParams], device_name: str) -> str:
    pictures = "1 picture" if len(params) == 1 else f"{len(params)} pictures"
    steps = "1 step" if params[0].effective_steps == 1 else f"{params[0].effective_steps} steps"
    return f"making {pictures}, {params[0].width}x{params[0].height}, {steps}, on {device_name}"


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
