"""Runs the service as `python -m app serve` does, with a task that measures the event loop's lag.

python -m benchmarks.support.watched_service LAG_FILE
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from app.main import create_app
from app.observability.logs import configure_logging
from app.server.serve import serve
from app.settings import Settings
from benchmarks.support.loop_lag import LagRecorder


def _watched(settings: Settings, /, *, on_device_lost: Callable[[], None]) -> FastAPI:
    app = create_app(settings, on_device_lost=on_device_lost)
    lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def watched_lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with lifespan(app):
            recording = asyncio.create_task(LagRecorder(Path(sys.argv[1])).run())
            yield
            recording.cancel()

    app.router.lifespan_context = watched_lifespan
    return app


if __name__ == "__main__":
    configured = Settings()
    configure_logging(log_format=configured.log_format, level=configured.log_level)
    serve(_watched, configured)
