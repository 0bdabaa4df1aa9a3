"""One trial of `tune`, in a process of its own: loads the model as the environment's settings say, and measures it.

The parent sends commands to stdin, one JSON object a line, each with the name `command`. Each is answered by a line on
stdout: `{"answer": {...}}`, or `{"error": {"code": ..., "text": ...}}` with the code of a `TurboError`. The first line
needs no command: it comes after the warm-up, and its answer is the facts of `_Trial.facts`. The process ends after
an error, after the command `close`, and as soon as stdin closes.
"""

import asyncio
import importlib.metadata
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

import numpy as np

from app.cli.stdout import own_stdout
from app.errors import DeadPictureError, TurboError, first_line
from app.inference.device_watch import unless_hung
from app.inference.registry import PipelineRegistry
from app.inference.samples import sample_pictures
from app.main import make_registry
from app.observability.logs import configure_logging
from app.pipelines.base import GenerationParams, Mode, PipelineImage
from app.pipelines.npu import host as ascend_host
from app.server.process import exit_now
from app.settings import Settings

T = TypeVar("T")
Answer = Mapping[str, Any]

_PROMPTS = (
    "a red circle on a blue background",
    "a fox with a scarf",
    "a castle on a hill at sunset",
    "an oil painting of a bowl of fruit",
)
_COMPARED = ((Mode.TXT2IMG, 1, 4), (Mode.TXT2IMG, 4, 2), (Mode.IMG2IMG, 2, 2), (Mode.INPAINT, 2, 1))
"""The pictures that trials compare: mode, steps and how many of the prompts. Inpainting calls the networks of image to
image, and only blends latents besides, so one picture is enough."""

_PACKAGES = ("torch", "torch_npu", "diffusers", "transformers", "numpy")

_SETTLED_CALLS = 3
"""Calls with the same batch limit after which the limit is learned: a size's first call is no measurement, its second
is one, and the third has the size that follows."""

_MOST_CALLS = 40
"""Calls after which learning ends in any case: two for each size, and some more for a limit that changes."""


def main() -> NoReturn:
    """Serve the parent's commands until it closes stdin, and end the process."""
    with own_stdout() as stdout:
        try:
            settings = Settings()
            configure_logging(log_format="console", level="warning")
            registry = make_registry(settings)
            asyncio.run(unless_hung(_serve(registry, stdout), registry.lock))
            code = 0
        except TurboError as error:
            _send(stdout, {"error": {"code": error.code, "text": f"{error.detail} {error.remedy}".rstrip()}})
            code = 1
        except Exception as error:  # noqa: BLE001 - the process's edge: the parent reports the fault as the trial's
            text = f"{type(error).__name__}: {first_line(error)}."
            _send(stdout, {"error": {"code": TurboError.code, "text": text}})
            code = 1
    exit_now(code)  # the device thread may hang in a call


def _send(stdout: TextIO, message: Mapping[str, Any]) -> None:
    with suppress(BrokenPipeError):  # the parent has ended, and the end of stdin ends this process
        print(json.dumps(message), file=stdout, flush=True)


async def _serve(registry: PipelineRegistry, stdout: TextIO) -> None:
    lines = _lines(asyncio.get_running_loop())
    async with registry:
        trial = _Trial(registry)
        commands: Mapping[str, Callable[..., Any]] = {
            "pictures": trial.pictures,
            "batch": trial.batch,
            "time": trial.time,
            "learn": trial.learn,
            "throughput": trial.throughput,
        }
        _send(stdout, {"answer": await trial.facts()})
        while (name := (request := json.loads(await lines.get())).pop("command")) != "close":
            _send(stdout, {"answer": await commands[name](**request)})


def _lines(loop: asyncio.AbstractEventLoop) -> "asyncio.Queue[str]":
    """Return a queue of the lines of stdin. The end of stdin ends the process, even in the middle of a call."""
    lines: asyncio.Queue[str] = asyncio.Queue()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line)
        os._exit(0)

    threading.Thread(target=read, name="commands", daemon=True).start()
    return lines


class _Trial:
    """Answers commands with calls on the device thread, at the first of the warm-up sizes.

    Each timed prompt has a number of its own: prompts of users are mostly new, and a repeated prompt is cached.
    """

    def __init__(self, registry: PipelineRegistry) -> None:
        self._registry = registry
        self._size = registry.warm_up_sizes[0]
        self._numbers = itertools.count()

    async def facts(self) -> Answer:
        """Return the device, its kind, the number formats of the models, the threads and the versions."""
        loaded, device = self._registry.loaded, self._device
        kind = loaded.device_name.partition(":")[0]
        description = await self._registry.lock.run(partial(_description, device))
        return {
            "kind": kind,
            "device": description,
            "model": loaded.model,
            "vae": loaded.vae or "",
            "dtypes": {"loaded": loaded.dtype, **self._pipeline(Mode.TXT2IMG).dtypes},
            "threads": device.threads,
            "versions": _versions(kind),
        }

    async def pictures(self, *, file: str) -> Answer:
        """Make the pictures that are compared, and save their pixels as an NPZ file; return the names of dead ones."""
        pixels, dead = {}, []
        for mode, steps, count in _COMPARED:
            for number, prompt in enumerate(_PROMPTS[:count]):
                (params,) = sample_pictures(mode, self._size, 1, prompt=prompt)
                name = f"{mode} {steps} steps {number}"
                try:
                    (made,) = await self._make([replace(params, seed=number, num_inference_steps=steps)])
                    pixels[name] = made.pixels
                except DeadPictureError:
                    dead.append(name)
        np.savez(Path(file), **pixels)  # type: ignore[arg-type] # numpy's stub takes the names for its own option
        return {"dead": dead}

    async def batch(self, *, pictures: int, alone: str, together: str) -> Answer:
        """Make pictures one by one and in one call, and save both as NPZ files with the same names."""
        samples = sample_pictures(Mode.TXT2IMG, self._size, pictures)
        singles = [(await self._make([params]))[0] for params in samples]
        batched = await self._make(samples)
        for file, made in ((alone, singles), (together, batched)):
            np.savez(Path(file), **{str(number): image.pixels for number, image in enumerate(made)})  # type: ignore[arg-type] # as above
        return {}

    async def time(self, *, mode: str, calls: int) -> Answer:
        """Return the seconds of each of some calls for one picture with a request's default steps."""
        seconds = []
        for _ in range(calls):
            made = self._new(Mode(mode), 1)
            seconds.append(await self._timed(made))
        return {"seconds": seconds}

    async def learn(self) -> Answer:
        """Let the service learn which batch size pays for text to image; return it."""
        limit, calls = 0, 0
        for _ in range(_MOST_CALLS):
            limit, last = self._limit(), limit
            calls = calls + 1 if limit == last else 1
            if calls == _SETTLED_CALLS or limit == 1 == last:
                break
            await self._timed(self._new(Mode.TXT2IMG, limit))
        return {"at_once": limit}

    async def throughput(self, *, waiting: int) -> Answer:
        """Return the pictures per second while the service would work on so many requests that wait."""
        left, seconds = waiting, 0.0
        while left:
            made = self._new(Mode.TXT2IMG, min(left, self._limit()))
            seconds += await self._timed(made)
            left -= len(made)
        return {"pictures_per_s": waiting / seconds}

    def _limit(self) -> int:
        (params,) = sample_pictures(Mode.TXT2IMG, self._size, 1)
        return self._registry.loaded.by_mode[Mode.TXT2IMG].batch_limit(params.batch_key)

    def _new(self, mode: Mode, count: int) -> Sequence[GenerationParams]:
        samples = sample_pictures(mode, self._size, count)
        return [replace(params, prompt=f"{params.prompt}, {next(self._numbers)}") for params in samples]

    async def _timed(self, pictures: Sequence[GenerationParams]) -> float:
        pipeline, device = self._pipeline(pictures[0].mode), self._device

        def call() -> float:
            started = time.perf_counter()
            pipeline(pictures)
            device.check()  # a dead device is fast
            return time.perf_counter() - started

        return await self._run(call, pictures)

    async def _make(self, pictures: Sequence[GenerationParams]) -> Sequence[PipelineImage]:
        pipeline, device = self._pipeline(pictures[0].mode), self._device

        def call() -> Sequence[PipelineImage]:
            made: Sequence[PipelineImage] = pipeline(pictures)
            device.check()
            return made

        with pipeline.batch_sizes.unsplit() if len(pictures) > 1 else nullcontext():
            return await self._run(call, pictures)

    async def _run(self, call: Callable[[], T], pictures: Sequence[GenerationParams]) -> T:
        return await self._registry.lock.run(call, limit_s=self._registry.hang_limit_s(pictures))

    def _pipeline(self, mode: Mode) -> Any:
        return self._registry.loaded.by_mode[
            mode
        ]  # Any, because its batch sizes and number formats are behind the seam

    @property
    def _device(self) -> Any:
        return self._registry.loaded.device  # Any, because its threads are behind the seam


def _description(device: Any) -> str:
    from app.pipelines.device import describe  # noqa: PLC0415 - imports torch, which loading has done on this thread

    name, _, total_bytes = describe(device)
    return f"{name}, {total_bytes / 2**30:.0f} GiB"


def _versions(kind: str) -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    if kind == "npu":
        found = {"CANN": ascend_host.cann_version(os.environ), "driver": ascend_host.driver_version()}
        versions |= {name: version for name, version in found.items() if version is not None}
    return versions


if __name__ == "__main__":
    main()
