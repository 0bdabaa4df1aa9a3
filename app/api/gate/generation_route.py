"""The checks of the picture routes that run before the body is read."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ClassVar

from fastapi import Request, Response
from fastapi.routing import APIRoute

from app.api.context import ApiContext
from app.api.openapi import BINARY
from app.errors import UnsupportedMediaTypeError


class GenerationRoute(APIRoute):
    """A route for pictures. It accepts the media types of the body that its `openapi_extra` describes.

    Before it reads the body, it checks origin, key, media type, free places and rate limit.
    """

    also_accepts: ClassVar[Sequence[str]] = ()
    """Further media types of the body, which the OpenAPI document does not describe; `*` for any, and none."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        media_types = [*(self.openapi_extra or {})["requestBody"]["content"], *self.also_accepts]

        async def handle_checked(request: Request) -> Response:
            context: ApiContext = request.app.state.context
            context.access.check_origin(request)
            client = request.state.observer.facts["client"] = context.access.identify(request)
            sent = media_type_of(request)
            # RFC 9110, 8.3: without Content-Type, a body is any bytes.
            if "*" not in media_types and (sent or BINARY) not in media_types:
                accepted = " or ".join(media_types)
                raise UnsupportedMediaTypeError(f"Send {accepted}, not {sent or 'a body without Content-Type'}.")
            context.engine.admission.check()
            # Last: requests refused for lack of capacity do not count against the rate limit.
            context.access.count(client)
            return await handle(request)

        return handle_checked


def media_type_of(request: Request) -> str:
    """Return the body's media type without parameters; empty if it has none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
