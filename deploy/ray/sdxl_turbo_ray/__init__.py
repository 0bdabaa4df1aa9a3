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
"""The process's exit code then; as without Ray."""

_LAST_ANSWERS_S = 2
"""Seconds that answers have to leave the process once the device is lost: whoever waited has been told by then."""

_BEYOND_DRAIN_S = 10
"""Seconds that Ray waits longer than TURBO_DRAIN_S, as whatever else stops the service."""

_HEALTH_CHECK_S = 2
"""Seconds between health checks, which read plain state. A replica that has died is replaced at the next one."""

_WAIT_LOOP_S = 1
"""Seconds between looks at whether a replica that is to stop has answered everybody."""


class Replica:
    """One replica. Its settings are the `TURBO_` variables of the process that Ray starts for it."""

    _engine: Engine

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Put the app together, in the replica; Ray then runs its lifespan, which loads and warms up."""
        settings = Settings()
        configure_logging(log_format=settings.log_format, level=settings.log_level)
        warn_of_unknown_variables(os.environ)
        app = create_app(settings, on_device_lost=_end_soon)
        self._engine = app.state.context.engine
        return app

    def check_health(self) -> None:
        """Tell Ray that the replica is of use.

        Raises:
            NotReadyError: It is not, and has to be replaced.
        """
        status = self._engine.status
        if not status.ready:
            raise NotReadyError(f"The service is not ready: {status.word}.")


def _end_soon() -> None:
    """End the process by os._exit, as a call may hang; Ray starts another. On the event loop."""
    asyncio.get_running_loop().call_later(_LAST_ANSWERS_S, exit_now, _DEVICE_LOST)


def deploy(replica: type[Replica], settings: Settings) -> Application:
    """Return the application whose replicas are `replica`, with Ray's limits behind those of the settings."""
    deployment = serve.deployment(
        name="SdxlTurbo",
        max_ongoing_requests=settings.max_connections,
        graceful_shutdown_timeout_s=settings.drain_s + _BEYOND_DRAIN_S,
        graceful_shutdown_wait_loop_s=_WAIT_LOOP_S,
        health_check_period_s=_HEALTH_CHECK_S,
    )
    return deployment(serve.ingress()(replica)).bind()


def build(_: dict[str, Any]) -> Application:
    """Build the application, for `serve deploy`; it takes no arguments. Ray calls it on the cluster."""
    return deploy(Replica, Settings())
