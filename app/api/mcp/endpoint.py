"""The endpoint: the service's checks first, then the official SDK's transport (mcp 2.3), one request at a time.

Answers are JSON: the SDK's clients refuse server-sent events over 1 MiB, which a picture can exceed. There are no
sessions, so any replica can answer any request, and GET, which would hold a connection open for events that never come,
gets 405, as the protocol allows.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.datastructures import MutableHeaders
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from app.api.context import ApiContext
from app.api.errors import problem_response
from app.api.gate.generation_route import media_type_of
from app.api.generation import make_while_connected
from app.api.large_json import Texts, read_large_json, take_picture
from app.api.openapi import JSON
from app.errors import ClientDisconnectedError, InvalidRequestError, TurboError, UnsupportedMediaTypeError
from app.inference.generation import Encoding, Generated
from app.mcp.tools import Make, make_server
from app.modes.fields import Uploads

_SERVER_ERROR = -32000
"""The JSON-RPC code of errors of this service."""


def add_mcp(app: FastAPI, context: ApiContext) -> None:
    """Serve the tools at /mcp."""
    endpoint = _Endpoint(context)
    endpoint.route = Route("/mcp", endpoint, methods=["POST"], include_in_schema=False)
    app.router.routes.append(endpoint.route)


class _Endpoint:
    """An ASGI app, because the SDK's transport answers by itself; also the tools' `Transport`."""

    route: Route
    picture_forms = "base64 or a data URL"

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._server = make_server(context.generation, self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self.route  # for metrics, log and traces
        request = Request(scope, receive)
        try:
            body = await self._read(request)
        except TurboError as error:
            await _rpc_response(error, request)(scope, receive, send)
            return
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return unread.pop() if unread else await receive()

        async def send_as_this_service(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Cache-Control"] = "no-store"
                if request.state.observer.error_code == ClientDisconnectedError.code:
                    message["status"] = ClientDisconnectedError.status
            await send(message)

        # One for each request: without sessions it holds nothing, and one for all needs a task of its own.
        manager = StreamableHTTPSessionManager(
            self._server,
            stateless=True,
            json_response=True,
            max_request_body_size=sys.maxsize,  # compared with Content-Length, whose limit was checked already
        )
        async with manager.run():
            await manager.handle_request(scope, receive_again, send_as_this_service)

    async def _read(self, request: Request) -> bytes:
        """Check a request, and return its message without pictures, which `request.state.texts` has.

        The SDK parses on the event loop, and puts what it cannot parse into its errors.
        """
        access = self._context.access
        access.check_origin(request)
        request.state.observer.facts["client"] = access.identify(request)
        if media_type_of(request) != JSON:
            raise UnsupportedMediaTypeError(f"Send {JSON}.")
        max_bytes = self._context.settings.max_body_bytes
        sent = await read_large_json(request.stream(), max_bytes=max_bytes, required="jsonrpc")
        message, request.state.texts = sent
        if not isinstance(message, dict) or message.get("jsonrpc") != "2.0" or not _is_id(message.get("id")):
            raise InvalidRequestError("The body must be one JSON-RPC 2.0 message.")
        return json.dumps(message).encode()

    async def begin(self, context: Any) -> None:
        self._context.engine.admission.check()
        self._context.access.count(context.request.state.observer.facts["client"])

    async def run(self, make: Make, encoding: Encoding, context: Any) -> Generated:
        return await make_while_connected(make, encoding, context.request)  # type: ignore[arg-type]

    def uploads(self, pictures: Mapping[str, str], context: Any) -> Uploads:
        texts: Texts = context.request.state.texts
        readers = {name: take_picture(text, texts, param=name) for name, text in pictures.items()}
        texts.clear()
        return readers

    def on_refused(self, code: str, context: Any) -> None:
        context.request.state.observer.on_error(code)


def _is_id(value: object) -> bool:
    return value is None or (isinstance(value, int | str) and not isinstance(value, bool))


def _rpc_response(error: TurboError, request: Request) -> JSONResponse:
    """Make an error's response with a JSON-RPC body, as the SDK's clients show no other reason."""
    response = problem_response(error, request)
    problem = json.loads(bytes(response.body))
    body = {
        "jsonrpc": "2.0",
        "id": None,
        "error": {"code": _SERVER_ERROR, "message": str(error), "data": problem},
    }
    headers = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
    return JSONResponse(body, response.status_code, headers)
