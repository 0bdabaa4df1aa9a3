"""Pictures without a server: one request, checked and made as the service does it, and written to files."""

import asyncio
import json
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import ValidationError

from app.cli.output_files import STDOUT, OutputFiles
from app.cli.stdout import own_stdout
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
from app.images.encoding import MediaType
from app.inference.device_lock import DeviceLock
from app.inference.device_watch import unless_hung
from app.inference.engine import Engine
from app.inference.generation import Encoding, Generated, Generation, Observer
from app.inference.registry import PipelineRegistry
from app.inference.requests import Img2ImgRequest, Txt2ImgRequest
from app.main import load_model
from app.pipelines.base import GenerationParams
from app.settings import Settings, parse_sizes

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
        cause = (
            error.__cause__ if type(error) is InferenceError else None
        )  # a foreign error: the engine does not show it
        progress.say(f"{str(error).removesuffix('.')}: {_named(cause)}." if cause else str(error))
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
    with own_stdout() as stdout:
        request, picture = _read_request(order)
        if order.output == STDOUT and order.as_json:
            raise InvalidRequestError("The picture and JSON cannot both go to stdout.", param="json")
        if order.output == STDOUT and sys.stdout is None:
            raise InvalidRequestError("Stdout is closed.", param="output")
        files = OutputFiles(order.output, count=request.num_images, stdout=stdout)
        _end_on_signals(files, progress)
        load_s, result = asyncio.run(_make(request, picture, files.media_type, settings, progress))
        names = []
        for number, (seed, file) in enumerate(zip(result.seeds, result.files, strict=True)):
            names.append(files.write(number, file, name=f"{result.used.mode}-{seed}.png"))
            seconds = result.timings.inference_s / len(result.files)
            progress.say(f"{names[-1]}  {result.used.width}x{result.used.height}  seed {seed}  {seconds:.1f} s")
        if result.used.prompt_truncated:
            progress.say(f"The prompt is longer than CLIP reads: it was cut at {result.used.prompt_tokens} tokens.")
        with suppress(BrokenPipeError):  # the reader has closed the pipe
            if order.as_json:
                print(_as_json(result, names, load_s), file=stdout, flush=True)
            elif order.output != STDOUT and not (progress.live and stdout.isatty()):  # which shows them already
                print(*names, sep="\n", file=stdout, flush=True)


def _as_json(result: Generated, names: Sequence[str], load_s: float) -> str:
    """Return the service's envelope, with the files' names in place of the pictures."""
    timings = result.timings
    answer = {
        "parameters": result.used.model_dump(mode="json", exclude_none=True),
        "images": [
            {"file": name, "seed": seed, "media_type": result.media_type}
            for name, seed in zip(names, result.seeds, strict=True)
        ],
        "timings": {
            "decode_s": timings.decode_s,
            "load_s": round(load_s, 6),
            "inference_s": timings.inference_s,
            "encode_s": timings.encode_s,
        },
    }
    return json.dumps(answer, indent=1)


def _read_request(order: Order) -> tuple[Txt2ImgRequest | Img2ImgRequest, bytes]:
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
    request = Img2ImgRequest.model_validate(fields)
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


def _end_on_signals(files: OutputFiles, progress: _Progress) -> None:
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
    request: Txt2ImgRequest | Img2ImgRequest,
    picture: bytes,
    media_type: MediaType,
    settings: Settings,
    progress: _Progress,
) -> tuple[float, Generated]:
    """Load the model and serve the one request as the service does, but without warm-up; return the seconds of loading.

    Raises:
        StartError: The weights or the device cannot be used.
        TurboError: The request is invalid, or the pictures could not be made.
    """
    device_lock = DeviceLock(hang_limit_s=settings.hang_limit_s)
    if settings.batching == "exact":  # its trial batches would be in vain; the bytes are those of single pictures
        settings = settings.model_copy(update={"batching": "off"})
    registry = PipelineRegistry(
        partial(load_model, settings), device_lock, warm_up_sizes=parse_sizes(settings.warm_up_sizes), warm_up=False
    )
    engine = Engine(registry, device_lock, max_queue=0, deadline_s=math.inf, on_device_lost=lambda _: None)
    with ThreadPoolExecutor(request.num_images) as codec_threads:
        generation = Generation(engine, registry, settings, codec_threads=codec_threads)
        generation.check_pixels(request)
        if isinstance(request, Img2ImgRequest):
            generation.decode(picture, request)  # a bad picture is rejected before the model is loaded
        async with AsyncExitStack() as stack:
            progress.begin(f"loading {settings.model}")
            started = time.monotonic()
            await _load(stack.enter_async_context(registry), device_lock, progress)
            load_s = time.monotonic() - started
            encoding, observer = Encoding(media_type=media_type), _Announcer(progress, registry)
            call = (
                generation.from_picture(request, lambda: picture, encoding=encoding, observer=observer)
                if isinstance(request, Img2ImgRequest)
                else generation.from_text(request, encoding=encoding, observer=observer)
            )
            return load_s, await unless_hung(call, device_lock, on_tick=progress.tick)


async def _load(work: Coroutine[Any, Any, PipelineRegistry], device_lock: DeviceLock, progress: _Progress) -> None:
    try:
        await unless_hung(work, device_lock, on_tick=progress.tick)
    except DeviceOutOfMemoryError as error:
        raise DeviceUnavailableError("The device has no memory for the weights.") from error
    except TurboError:
        raise
    except Exception as error:
        raise StartError(f"The model cannot be loaded: {_named(error)}.") from error


class _Announcer(Observer):
    """Says what is being made as soon as that is known."""

    def __init__(self, progress: _Progress, registry: PipelineRegistry) -> None:
        self._progress = progress
        self._registry = registry

    def on_params(self, params: Sequence[GenerationParams]) -> None:
        """Say what is being made."""
        first, device = params[0], self._registry.loaded.device_name
        pictures = "1 picture" if len(params) == 1 else f"{len(params)} pictures"
        steps = "1 step" if first.effective_steps == 1 else f"{first.effective_steps} steps"
        self._progress.begin(f"making {pictures}, {first.width}x{first.height}, {steps}, on {device}")


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
