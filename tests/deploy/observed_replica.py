"""A replica of deploy/ray that names itself in each response, and breaks on request."""

import os

from ray.serve import Application
from sdxl_turbo_ray import Replica, deploy
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import DeviceLostError
from app.settings import Settings


class ObservedReplica(Replica):
    """The replica, with its process id and devices in response headers, and routes that break it."""

    def __serve_build_asgi_app__(self) -> ASGIApp:
        app = super().__serve_build_asgi_app__()
        break_it = {
            "/lose": lambda: self._engine.lose_device(DeviceLostError("The device is lost.")),
            "/unready": self._engine.admission.drain,
        }

        async def observed(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_with_name(message: Message) -> None:
                if message["type"] == "http.response.start":
                    devices = os.environ.get("ASCEND_RT_VISIBLE_DEVICES", "none")
                    message["headers"] += [(b"x-pid", b"%d" % os.getpid()), (b"x-devices", devices.encode())]
                await send(message)

            if scope["type"] == "http":
                path = scope["path"].removeprefix(scope["root_path"])
                break_it.get(path, lambda: None)()
            await app(scope, receive, send_with_name)

        return observed


def build(_: dict[str, str]) -> Application:
    return deploy(ObservedReplica, Settings())
