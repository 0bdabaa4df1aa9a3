"""What the routes work with: made once in `app.main`, kept in `app.state`, handed to handlers as a dependency."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from app.api.access import Access
from app.inference.engine import Engine
from app.inference.registry import PipelineRegistry
from app.settings import Settings
from app.telemetry import Metrics
from app.tracing import Tracing


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiContext:
    """The engine and what stands around it.

    `codec_threads` bounds the pictures that are read and written at once, and with them the memory that this takes: a
    thread whose request was given up is busy until it is done, and what waits for one is dropped with its request.
    """

    settings: Settings
    registry: PipelineRegistry
    engine: Engine
    metrics: Metrics
    tracing: Tracing
    access: Access
    codec_threads: ThreadPoolExecutor
    started: int = field(default_factory=lambda: int(time.time()))
    """Unix time in seconds."""


async def get_context(request: Request) -> ApiContext:
    """Return the app's context; a coroutine, as FastAPI would hand a plain function to a thread."""
    context: ApiContext = request.app.state.context
    return context


Context = Annotated[ApiContext, Depends(get_context)]
