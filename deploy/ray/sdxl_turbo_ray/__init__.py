"""The service behind Ray Serve: each replica is the whole app, with its own device, queue and batches."""

import asyncio
import os
from typing import Any

from ray import serve
from ray.serve import Application
from starlette.types import ASGIApp

from app.errors import NotReadyError
from app.inference.engine import Engine
from app.main import create_app
from app.observability.logs import configure_logging
from app.server.process import exit_now
from app.settings import Settings, warn_of_unknown_variables

_DEVICE_LOST = 4
"""The process's exit code if its device is lost; the same as without Ray."""

_LAST_ANSWERS_S = 2
"""Seconds between the loss of the device and the exit, for the answers to waiting requests."""

_BEYOND_DRAIN_S = 10
"""Seconds that Ray waits longer than TURBO_DRAIN_S; the same as all other grace periods."""

_HEALTH_CHECK_S = 2
"""Seconds between health checks, which read plain state. Ray replaces a dead replica at the next check."""

_WAIT_LOOP_S = 1
"""Seconds between checks whether a stopping replica has answered all requests."""


class Replica:
    """One replica. Its settings are the `TURBO_` variables of its process, which Ray starts."""

    _engine: Engine

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Build the app in the replica. Ray then runs its lifespan, which loads the model and warms up."""
        settings = Settings()
        configure_logging(log_format=settings.log_format, level=settings.log_level)
        warn_of_unknown_variables(os.environ)
        app = create_app(settings, on_device_lost=_end_soon)
        self._engine = app.state.context.engine
        return app

    def check_health(self) -> None:
        """Tell Ray that the replica works.

        Raises:
            NotReadyError: The replica does not work and must be replaced.
        """
        status = self._engine.status
        if status != "ready":
            raise NotReadyError(f"The service is not ready: {status}.")


def _end_soon() -> None:
    """End the process by os._exit, because a call may hang; Ray starts another. Runs on the event loop."""
    asyncio.get_running_loop().call_later(_LAST_ANSWERS_S, exit_now, _DEVICE_LOST)


def deploy(replica: type[Replica], settings: Settings) -> Application:
    """Return the application whose replicas are `replica`. Ray's limits take effect after those of the settings."""
    deployment = serve.deployment(
        name="SdxlTurbo",
        max_ongoing_requests=settings.max_connections,
        graceful_shutdown_timeout_s=settings.drain_s + _BEYOND_DRAIN_S,
        graceful_shutdown_wait_loop_s=_WAIT_LOOP_S,
        health_check_period_s=_HEALTH_CHECK_S,
    )
    return deployment(serve.ingress()(replica)).bind()


def build(_: dict[str, Any]) -> Application:
    """Build the application for `serve deploy`, without arguments. Ray calls this function on the cluster."""
    return deploy(Replica, Settings())
