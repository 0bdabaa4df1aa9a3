"""The way in of the routes that make pictures: what is refused before it is read, and how forms are read."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from app.api.context import ApiContext
from app.api.json_body import check_not_blank, parse_json
from app.errors import TurboError, UnsupportedMediaTypeError


def route_taking(*media_types: str) -> type[APIRoute]:
    """Return the class of routes that take bodies of these types; an empty one is a body without Content-Type.

    They refuse before they read: who may not ask, a body of another type, and any body while there is no place for it.
    """

    class GenerationRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handle_checked(request: Request) -> Response:
                context: ApiContext = request.app.state.context
                context.access.check_origin(request)
                client = request.state.observer.facts["client"] = context.access.identify(request)
                sent = media_type_of(request)
                if sent not in media_types:
                    known = " or ".join(filter(None, media_types))
                    raise UnsupportedMediaTypeError(f"Send {known}, not {sent or 'a body without Content-Type'}.")
                context.engine.check_admission()
                context.access.count(client)  # last: who is refused for want of a place has had nothing
                try:
                    return await handle(_JsonRequest(request.scope, request.receive))
                except HTTPException as error:  # FastAPI hides whatever reading a body raises behind a 400
                    if isinstance(error.__cause__, TurboError):
                        raise error.__cause__ from error.__cause__.__cause__
                    raise

            return handle_checked

    return GenerationRoute


class _JsonRequest(Request):
    """A request of which FastAPI reads the JSON as `parse_json` does."""

    async def body(self) -> bytes:
        """Return the whole body.

        Raises:
            TurboError: There is nothing in it.
        """
        body = await super().body()
        check_not_blank(body, "prompt")
        return body

    async def json(self) -> Any:
        """Return the body's value.

        Raises:
            TurboError: It has none, or an object in it has a name twice.
        """
        return parse_json(await self.body())


def media_type_of(request: Request) -> str:
    """Return the body's media type without parameters; empty if it has none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
