"""The endpoint: the service's checks first, then the official SDK's transport (mcp 2.3), one request at a time.

Answers are JSON: the SDK's clients refuse server-sent events over 1 MiB, which a picture can exceed. There are no
sessions, so any replica can answer any request, and GET, which would hold a connection open for events that never come,
gets 405, as the protocol allows.
"""

import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.datastructures import MutableHeaders
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from app.api.context import ApiContext
from app.api.errors import problem_response
from app.api.generation import make_while_connected
from app.errors import TurboError
from app.inference.generation import Encoding, Generated
from app.mcp.tools import Make, make_server

_PATH = "/mcp"
_SERVER_ERROR = -32000
"""The JSON-RPC code of errors of this service."""


def add_mcp(app: FastAPI, context: ApiContext) -> None:
    """Serve the tools at /mcp."""
    app.router.routes.append(Route(_PATH, _Endpoint(context), methods=["POST"], include_in_schema=False))


class _Endpoint:
    """An ASGI app, because the SDK's transport answers by itself."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._server = make_server(context.generation, self._run)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            self._context.access.check_origin(request)
            request.state.observer.facts["client"] = self._context.access.identify(request)
            # Read here: inside of the transport, anyio would put errors into groups.
            body = await request.body()
        except TurboError as error:
            await _rpc_response(error, request)(scope, receive, send)
            return
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return unread.pop() if unread else await receive()

        async def send_uncached(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Cache-Control"] = "no-store"
            await send(message)

        # One for each request: without sessions it holds nothing, and one for all needs a task of its own.
        manager = StreamableHTTPSessionManager(
            self._server, stateless=True, json_response=True, max_request_body_size=len(body) + 1
        )
        async with manager.run():
            await manager.handle_request(scope, receive_again, send_uncached)

    async def _run(self, make: Make, encoding: Encoding, context: Any) -> Generated:
        """Make pictures for a call as for any other request: the queue's limit, the rate, and the client's presence."""
        request: Request = context.request
        observer = request.state.observer
        try:
            self._context.engine.admission.check()
            self._context.access.count(observer.facts["client"])
            return await make_while_connected(make, encoding, request)  # type: ignore[arg-type]
        except TurboError as error:
            observer.on_error(error.code)
            raise


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
