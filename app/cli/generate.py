"""Pictures without a server: one request, validated and made as in the service, and written to files."""

import asyncio
import json
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from types import FrameType

from pydantic import ValidationError

from app import errors
from app.cli.output_files import STDOUT, OutputFiles
from app.cli.stdout import own_stdout
from app.inference.admission import Admission
from app.inference.device_watch import unless_hung
from app.inference.engine import Engine
from app.inference.generation import Encoding, Generated, Generation, Observer
from app.inference.registry import PipelineRegistry
from app.main import make_registry
from app.modes.fields import Uploads, context_of
from app.modes.img2img import Img2ImgRequest
from app.modes.inpaint import InpaintRequest
from app.modes.txt2img import Txt2ImgRequest
from app.pipelines.base import GenerationParams
from app.settings import Settings

_log = logging.getLogger(__name__)

_FAILED, _REFUSED, _CANNOT_START = 1, 2, 3
"""Exit codes; `python -m app generate --help` explains them."""

_STDIN = "-"

_Request = Txt2ImgRequest | Img2ImgRequest | InpaintRequest
_ONLY_INPAINTING = {"mask", *InpaintRequest.model_fields} - Img2ImgRequest.model_fields.keys()
"""Options of inpainting alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The arguments of the command: the request's fields as text, and files; `-` means stdin or stdout.

    Without `output` the pictures are new files in this folder.
    """

    fields: Mapping[str, str]
    image: str | None = None
    mask: str | None = None
    output: str | None = None
    as_json: bool = False


def generate(order: Order, settings: Settings) -> int:
    """Make the pictures of one request, write them, and return the process's exit code.

    Stdout gets the files' names, or JSON, or the picture itself; stderr gets progress and errors. A signal ends the
    process. The caller must end it too, with the exit code, because the device thread may still be in a call.
    """
    progress = _Progress()
    try:
        _make_and_write(order, settings, progress)
    except ValidationError as error:
        for fault in error.errors():
            name = fault.get("ctx", {}).get("param") or str(fault["loc"][0])
            progress.say(f"{_option(name)}: {fault['msg']}")
        return _REFUSED
    except errors.TurboError as error:
        _log.debug("failed", exc_info=error)
        progress.say(_explain(error))
        if isinstance(error, (errors.StartError, errors.DeviceLostError)):
            return _CANNOT_START
        return _REFUSED if error.status < HTTPStatus.INTERNAL_SERVER_ERROR else _FAILED
    except OSError as error:
        progress.say(f"{error.filename or 'stdout'} cannot be written: {error.strerror}.")
        return _FAILED
    return 0


def _explain(error: errors.TurboError) -> str:
    if type(error) is errors.InferenceError and error.__cause__:  # the public text does not name a foreign cause
        return f"{str(error).removesuffix('.')}: {_named(error.__cause__)}."
    return f"{_option(error.param)}: {error}" if error.param else f"{error.detail} {error.remedy}".rstrip()


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {errors.first_line(error)}"


def _option(name: str) -> str:
    return "PROMPT" if name == "prompt" else f"--{name.replace('_', '-')}"


class _Progress(Observer):
    """Progress on stderr; on a terminal a single line that counts the seconds."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.device_name = ""
        self._text = ""
        self._since = 0.0

    def on_params(self, params: Sequence[GenerationParams]) -> None:
        first = params[0]
        pictures = "1 picture" if len(params) == 1 else f"{len(params)} pictures"
        steps = "1 step" if first.effective_steps == 1 else f"{first.effective_steps} steps"
        self.begin(f"making {pictures}, {first.width}x{first.height}, {steps}, on {self.device_name}")

    def begin(self, text: str) -> None:
        self._text, self._since = text, time.monotonic()
        if self.live:
            self.tick()
        else:
            self.say(text)

    def tick(self) -> None:
        if self.live:  # the cursor returns to the start of the line, and the next output replaces the line
            self.clear(f"{self._text}  {time.monotonic() - self._since:.1f} s\r")

    def say(self, line: str) -> None:
        self.clear(f"{line}\n")

    def clear(self, text: str = "") -> None:
        """Replace the line that counts the seconds, if there is one, with this text."""
        with suppress(OSError):  # a full disk under stderr must not cost the user the picture
            print("\x1b[2K" * self.live + text, end="", file=sys.stderr, flush=True)  # noqa: T201


def _make_and_write(order: Order, settings: Settings, progress: _Progress) -> None:
    with own_stdout() as stdout:
        request, uploads = _read_request(order, settings)
        if order.output == STDOUT and order.as_json:
            raise errors.InvalidRequestError("The picture and JSON cannot both go to stdout.", param="json")
        if order.output == STDOUT and sys.stdout is None:
            raise errors.InvalidRequestError("Stdout is closed.", param="output")
        files = OutputFiles(order.output, count=request.num_images, stdout=stdout)
        _end_on_signals(files, progress)
        if settings.batching == "exact":  # one request needs no trial batches; its bytes are those of single pictures
            settings = settings.model_copy(update={"batching": "off"})
        registry = make_registry(settings, warm_up=False)
        making = _make(request, uploads, registry, settings, progress, encoding=Encoding(media_type=files.media_type))
        load_s, result = asyncio.run(unless_hung(making, registry.lock, on_tick=progress.tick))
        names = []
        for number, (seed, file) in enumerate(zip(result.seeds, result.files, strict=True)):
            names.append(files.write(number, file, name=f"{result.used.mode}-{seed}.png"))
            seconds = result.timings.inference_s / len(result.files)
            progress.say(f"{names[-1]}  {result.used.width}x{result.used.height}  seed {seed}  {seconds:.1f} s")
        if result.used.prompt_truncated:
            progress.say(f"The prompt is too long and was cut at {result.used.prompt_tokens} tokens.")
        with suppress(BrokenPipeError):  # the reader has closed the pipe
            if order.as_json:
                print(_as_json(result, names, load_s), file=stdout, flush=True)
            elif order.output != STDOUT and not (progress.live and stdout.isatty()):  # the terminal shows them already
                print(*names, sep="\n", file=stdout, flush=True)


def _as_json(result: Generated, names: Sequence[str], load_s: float) -> str:
    """Return the service's envelope, with the files' names in place of the pictures."""
    answer = {
        "parameters": result.used.model_dump(mode="json", exclude_none=True),
        "images": [
            {"file": name, "seed": seed, "media_type": result.media_type}
            for name, seed in zip(names, result.seeds, strict=True)
        ],
        "timings": {"load_s": round(load_s, 6), **result.timings.model_dump(exclude={"queue_s"})},
    }
    return json.dumps(answer, indent=1)


def _read_request(order: Order, settings: Settings) -> tuple[_Request, Uploads]:
    """Validate the request with the wire models, and return it with its files."""
    fields, context = dict(order.fields), context_of(settings.max_steps)
    if order.image is None:
        for name in ("strength", *_ONLY_INPAINTING):
            if name in fields or (name == "mask" and order.mask is not None):
                raise errors.InvalidRequestError("This option needs --image, the picture to change.", param=name)
    if [fields["prompt"], order.image, order.mask].count(_STDIN) > 1:
        param = "mask" if order.mask == _STDIN else "image"
        raise errors.InvalidRequestError("Only one of prompt, picture and mask can be on stdin.", param=param)
    if fields["prompt"] == _STDIN:
        # Surrogates make the model reject invalid UTF-8, as in an argument, which Python decodes the same way.
        fields["prompt"] = _read(_STDIN, param="prompt").decode("utf-8", "surrogateescape").rstrip("\r\n")
    if order.image is None:
        return Txt2ImgRequest.model_validate(fields, strict=False, context=context), {}  # numbers are text here
    is_inpainting = order.mask is not None or not _ONLY_INPAINTING.isdisjoint(fields)
    kind = InpaintRequest if is_inpainting else Img2ImgRequest
    request = kind.model_validate(fields, context=context)
    files = {"image": _read(order.image, param="image")}
    if order.mask is not None:
        files["mask"] = _read(order.mask, param="mask")
    return request, {name: partial(bytes, file) for name, file in files.items()}


def _read(name: str, *, param: str) -> bytes:
    if name == _STDIN and sys.stdin is None:
        raise errors.InvalidRequestError("Stdin is closed.", param=param)
    try:
        return sys.stdin.buffer.read() if name == _STDIN else Path(name).read_bytes()
    except OSError as error:
        shown = "Stdin" if name == _STDIN else name
        raise errors.InvalidRequestError(f"{shown} cannot be read: {error.strerror}.", param=param) from error


def _end_on_signals(files: OutputFiles, progress: _Progress) -> None:
    """Let a signal end the process at once, even during a device call, without unfinished files."""

    def end(number: int, _: FrameType | None) -> None:
        files.discard()
        with suppress(RuntimeError):  # the signal may interrupt a write to stderr, and Python forbids a second one
            progress.clear()
        os._exit(128 + number)

    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, end)


async def _make(
    request: _Request,
    uploads: Uploads,
    registry: PipelineRegistry,
    settings: Settings,
    progress: _Progress,
    *,
    encoding: Encoding,
) -> tuple[float, Generated]:
    """Load the model without warm-up and serve the request; return the seconds of loading and the result."""
    engine = Engine(registry, Admission(registry, max_queue=0, deadline_s=math.inf), on_device_lost=lambda _: None)
    with ThreadPoolExecutor(request.num_images) as codec_threads:
        generation = Generation(engine, settings, codec_threads=codec_threads)
        generation.check_pixels(request)
        if not isinstance(request, Txt2ImgRequest):
            request.to_params(uploads, settings)  # a bad picture is rejected before the model is loaded
        progress.begin(f"loading {settings.model}")
        started = time.monotonic()
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(registry)
            except errors.TurboError:
                raise
            except Exception as error:
                raise errors.StartError(f"The model cannot be loaded: {_named(error)}.") from error
            load_s = time.monotonic() - started
            progress.device_name = registry.loaded.device_name
            if isinstance(request, Txt2ImgRequest):
                return load_s, await generation.from_text(request, encoding=encoding, observer=progress)
            return load_s, await generation.from_uploads(request, uploads, encoding=encoding, observer=progress)
