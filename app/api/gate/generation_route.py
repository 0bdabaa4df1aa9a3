"""The checks of the picture routes that run before the body is read, and the reading of their JSON."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from app.api.context import ApiContext
from app.api.json_body import check_not_blank, parse_json
from app.api.openapi import BINARY, JSON
from app.errors import TurboError, UnsupportedMediaTypeError


class GenerationRoute(APIRoute):
    """A route for pictures. It accepts the media types of the body that `openapi_extra` describes; otherwise JSON.

    Before it reads the body, it checks origin, key, media type, free places and rate limit.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        media_types = self.openapi_extra["requestBody"]["content"] if self.openapi_extra else [JSON]

        async def handle_checked(request: Request) -> Response:
            context: ApiContext = request.app.state.context
            context.access.check_origin(request)
            client = request.state.observer.facts["client"] = context.access.identify(request)
            sent = media_type_of(request)
            if (sent or BINARY) not in media_types:  # RFC 9110, 8.3: without Content-Type, a body is any bytes
                accepted = " or ".join(media_types)
                raise UnsupportedMediaTypeError(f"Send {accepted}, not {sent or 'a body without Content-Type'}.")
            context.engine.admission.check()
            # Last: requests refused for lack of capacity do not count against the rate limit.
            context.access.count(client)
            try:
                return await handle(_JsonRequest(request.scope, request.receive))
            except HTTPException as error:
                # FastAPI replaces any error from reading the body with a 400.
                if isinstance(error.__cause__, TurboError):
                    raise error.__cause__ from error.__cause__.__cause__
                raise

        return handle_checked


class _JsonRequest(Request):
    """A request whose JSON FastAPI reads by `parse_json`."""

    async def body(self) -> bytes:
        body = await super().body()
        check_not_blank(body, "prompt")
        return body

    async def json(self) -> Any:
        return parse_json(await self.body())


def media_type_of(request: Request) -> str:
    """Return the body's media type without parameters; empty if it has none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
