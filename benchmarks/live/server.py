"""Serves the app as `python -m app serve` does, with a prototype of a WebSocket at /live.

    python -m benchmarks.live.server

The prototype is for the comparison only: it checks no key, origin or rate limit, and does not drain.

A client sends a state as a text frame, JSON with `id`, `mode`, `accept` and `fields`, and for image to image a binary
frame with the start picture. The newest state that has not been begun replaces older ones. The answer is a text frame,
JSON with the state's `id` and the timings in milliseconds, and a binary frame with the picture. With `ask=1` in the
address, the server sends `{"next": true}` whenever it could begin a state and has none.
"""

import asyncio
import json
import sys
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from starlette.websockets import WebSocket, WebSocketDisconnect

from app.api.context import ApiContext
from app.api.fields import checked
from app.errors import TurboError
from app.images.encoding import MediaType
from app.inference.generation import Encoding, Generated, Stage
from app.main import create_app
from app.modes.img2img import Img2ImgRequest
from app.modes.txt2img import Txt2ImgRequest
from app.observability.logs import configure_logging
from app.observability.request_observer import RequestObserver
from app.server.draining import DrainingServer
from app.settings import Settings

_SWITCH_INTERVAL_S = 0.0005
"""As in `app.server.serve`."""


class _Observer(RequestObserver):
    """Reports a state as a request is reported, and sets `off_device` when its device call has ended."""

    def __init__(self, context: ApiContext, scope: Mapping[str, Any], off_device: asyncio.Event) -> None:
        super().__init__(context.observability, scope, quiet=False)
        self._off_device = off_device

    def on_stage(self, stage: Stage) -> None:
        super().on_stage(stage)
        if stage.name == "inference":
            self._off_device.set()


@dataclass(frozen=True, slots=True)
class _State:
    """A state that a client wants. `said` is its text frame."""

    said: Mapping[str, Any]
    picture: bytes | None


class _Session:
    """One connection. One state's device call waits or runs; encoding and sending of the last one overlap with it.

    If the session `asks`, it tells the client when it has room for a state.
    """

    def __init__(self, socket: WebSocket, *, asks: bool) -> None:
        self._socket = socket
        self._asks = asks
        self._context: ApiContext = socket.app.state.context
        self._room = asyncio.Semaphore(1)
        self._arrived = asyncio.Event()
        self._newest: _State | None = None
        self._sending = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until the client disconnects."""
        await self._socket.accept()
        self._start(self._make_newest())
        try:
            with suppress(WebSocketDisconnect):
                await self._receive()
        finally:
            for task in self._tasks:
                task.cancel()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _receive(self) -> None:
        while True:
            said = json.loads(await self._socket.receive_text())
            picture = await self._socket.receive_bytes() if said["mode"] == "img2img" else None
            self._newest = _State(said, picture)
            self._arrived.set()

    async def _make_newest(self) -> None:
        while True:
            await self._room.acquire()
            if self._asks and not self._arrived.is_set():
                async with self._sending:
                    await self._socket.send_text('{"next": true}')
            await self._arrived.wait()
            self._arrived.clear()
            assert self._newest is not None
            self._start(self._serve(self._newest))

    async def _serve(self, state: _State) -> None:
        off_device = asyncio.Event()
        making = asyncio.create_task(self._make(state, off_device))
        leaving = asyncio.create_task(off_device.wait())
        try:
            await asyncio.wait({making, leaving}, return_when=asyncio.FIRST_COMPLETED)
            self._room.release()
            await self._answer(state, await making)
        except TurboError as error:
            await self._socket.send_text(json.dumps({"id": state.said["id"], "error": str(error)}))
        finally:
            leaving.cancel()
            making.cancel()

    async def _make(self, state: _State, off_device: asyncio.Event) -> Generated:
        context, scope = self._context, self._socket.scope
        encoding = Encoding(media_type=MediaType(state.said["accept"]))
        observer = _Observer(context, {**scope, "method": "GET"}, off_device)
        context.engine.admission.check()
        most = context.settings.max_steps
        if (picture := state.picture) is None:
            wanted = checked(Txt2ImgRequest, state.said["fields"], max_steps=most)
            made = await context.generation.from_text(wanted, encoding=encoding, observer=observer)
        else:
            start = checked(Img2ImgRequest, state.said["fields"], max_steps=most)
            uploads = {"image": lambda: picture}
            made = await context.generation.from_uploads(start, uploads, encoding=encoding, observer=observer)
        observer.end(method="GET", path="/live", route="/live", status=200, request_id=str(state.said["id"]))
        return made

    async def _answer(self, state: _State, made: Generated) -> None:
        timings = {name.removesuffix("_s"): 1000 * spent_s for name, spent_s in made.timings.model_dump().items()}
        answer = {"id": state.said["id"], "seed": made.seeds[0], "timings": timings}
        async with self._sending:
            await self._socket.send_text(json.dumps(answer))
            await self._socket.send_bytes(made.files[0])


async def _live(socket: WebSocket) -> None:
    await _Session(socket, asks=socket.query_params["ask"] == "1").run()


class _Server(DrainingServer):
    """The service's server, with WebSockets. Pictures are compressed already, so frames are not."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(app, settings)
        self.config.ws = "websockets-sansio"
        self.config.ws_per_message_deflate = False


def main() -> None:
    """Serve until a signal arrives."""
    settings = Settings()
    configure_logging(log_format=settings.log_format, level=settings.log_level)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    app = create_app(settings)
    app.router.add_websocket_route("/live", _live)
    _Server(app, settings).run()


if __name__ == "__main__":
    main()
