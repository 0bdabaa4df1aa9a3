"""`python -m app mcp`: the tools for agents over stdin and stdout, for one client that starts this process."""

import asyncio
import logging
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from mcp.server.stdio import stdio_server

from app.errors import DeviceLostError, TurboError
from app.inference.admission import Admission
from app.inference.device_watch import DeviceWatch
from app.inference.engine import Engine
from app.inference.generation import Encoding, Generated, Generation, Observer
from app.inference.registry import PipelineRegistry
from app.main import make_registry
from app.mcp.local_pictures import FORMS, read_picture
from app.mcp.tools import Make, make_server
from app.modes.fields import Uploads
from app.server.process import DEVICE_LOST, START_FAILED, exit_now
from app.settings import Settings

_log = logging.getLogger(__name__)

_LAST_ANSWERS_S = 1.0
"""Seconds in which the answers of a lost device are written before the process ends."""


def serve_stdio(settings: Settings) -> int:
    """Serve the tools until stdin ends, and return the process's exit code. The caller must end the process with it."""
    return asyncio.run(_serve(settings))


@dataclass(frozen=True)
class _Stdio:
    """The tools' `Transport`."""

    loading: asyncio.Task[None]
    max_bytes: int
    picture_forms: ClassVar[str] = FORMS

    async def begin(self, _: Any) -> None:
        await asyncio.shield(self.loading)

    async def run(self, make: Make, encoding: Encoding, _: Any) -> Generated:
        return await make(encoding=encoding, observer=Observer())

    def uploads(self, pictures: Mapping[str, str], _: Any) -> Uploads:
        return {
            name: partial(read_picture, text, max_bytes=self.max_bytes, param=name) for name, text in pictures.items()
        }

    def on_refused(self, code: str, _: Any) -> None:
        _log.info("a call was answered with %s", code)


async def _serve(settings: Settings) -> int:
    """Answer at once, and load the model meanwhile: clients wait only seconds for the first answer."""

    def end(error: DeviceLostError) -> None:
        _log.critical("the device is lost: %s %s", error.detail, error.remedy, exc_info=error)
        asyncio.get_running_loop().call_later(_LAST_ANSWERS_S, exit_now, DEVICE_LOST)

    async with AsyncExitStack() as stack:
        # First, because from here on it keeps stdout for itself: what libraries print goes to stderr.
        read, write = await stack.enter_async_context(stdio_server())
        registry = make_registry(settings, warm_up=False)
        # No deadline: there is one client, and it can cancel.
        admission = Admission(registry, max_queue=settings.max_queue, deadline_s=math.inf)
        engine = Engine(registry, admission, on_device_lost=end)
        codec_threads = stack.enter_context(ThreadPoolExecutor(4, thread_name_prefix="codec"))
        generation = Generation(engine, settings, codec_threads=codec_threads)
        loading = asyncio.create_task(_load(registry, stack))
        watch = asyncio.create_task(DeviceWatch(engine, idle_check_s=settings.idle_check_s).run())
        stack.callback(watch.cancel)
        stack.callback(loading.cancel)
        server = make_server(generation, _Stdio(loading, int(settings.max_body_bytes)))
        await server.run(read, write, server.create_initialization_options())
        failed = loading.done() and not loading.cancelled() and loading.exception() is not None
    return START_FAILED if failed else 0


async def _load(registry: PipelineRegistry, stack: AsyncExitStack) -> None:
    try:
        await stack.enter_async_context(registry)
    except TurboError as error:
        _log.critical("the model cannot be loaded: %s", error)
        raise
