"""The way in of the routes that make pictures: what is refused before it is read, and how forms are read."""

import codecs
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from app.api.context import ApiContext
from app.api.json_body import parse_json
from app.errors import InvalidRequestError, MalformedBodyError, TurboError, UnsupportedMediaTypeError

Fields = TypeVar("Fields", bound=BaseModel)

_MAX_FILES, _MAX_FIELDS = 16, 32
"""Parts that a form may have; more than any form needs, so that a field too many is named and not a part counted. Of
pictures to edit OpenAI's API takes 16."""

_CHARSETS = frozenset({"utf-8", "ascii", "iso8859-1", "cp1252"})
"""What a form may be in. Python knows a hundred more, and some of them (punycode) take minutes for a megabyte."""


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
                client = request.state.log["client"] = context.access.identify(request)
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


def check_not_blank(body: bytes, field: str) -> None:
    """Check that there is something to parse; `field` is the one that has to be in it.

    Raises:
        InvalidRequestError: The body is empty: what is required is missing.
        MalformedBodyError: It has nothing but blanks, which are no JSON.
    """
    if not body:
        raise InvalidRequestError(f"The body is empty; send a JSON object with `{field}`.")
    if not body.strip():
        raise MalformedBodyError(f"The body has nothing but blanks; send a JSON object with `{field}`.")


def media_type_of(request: Request) -> str:
    """Return the body's media type without parameters; empty if it has none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


@asynccontextmanager
async def read_form(request: Request, model: type[Fields], *, one_as_list: str | None = None) -> AsyncIterator[Fields]:
    """Read a multipart form; its files are closed when the context ends.

    FastAPI's own reading takes an empty prompt for a missing one, and of a field that is sent twice the last.

    Args:
        request: The request.
        model: The form's fields.
        one_as_list: A field that may be sent under its name with `[]` behind it, too, as lists of one are.

    Raises:
        MalformedBodyError: The form cannot be decoded.
        InvalidRequestError: A field is sent twice.
        RequestValidationError: The fields are not the model's.
    """
    _check_charset(request.headers["content-type"])
    parser = _FormParser(request.headers, request.stream(), max_files=_MAX_FILES, max_fields=_MAX_FIELDS)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise MalformedBodyError(f"The form cannot be read: {error.message}") from error
    try:
        if not parser.ended:
            raise MalformedBodyError("The form ends before its closing boundary.")
        fields: dict[str, Any] = {}
        for sent, value in form.multi_items():
            name = sent.removesuffix("[]") if one_as_list and sent == f"{one_as_list}[]" else sent
            if name in fields and name == one_as_list:
                raise InvalidRequestError(f"One {name} is taken, and several were sent.", param=name)
            if name in fields:
                raise InvalidRequestError(f"{name} is sent twice.", param=name)
            fields[name] = value
        yield checked(model, fields)
    finally:
        await form.close()


class _FormParser(MultiPartParser):
    """Starlette's parser, which drops a last field that is cut off, and takes what is not UTF-8 for Latin-1."""

    ended = False

    def on_part_end(self) -> None:
        if self._current_part.file is None:
            try:
                self._current_part.data.decode(self._charset)
            except UnicodeDecodeError as error:
                raise MultiPartException(f"a field is not in {self._charset}.") from error
        super().on_part_end()

    def on_end(self) -> None:
        self.ended = True


def checked(model: type[Fields], fields: Any, *, strict: bool = False) -> Fields:
    """Return the fields as the model; `strict` says that numbers must be numbers, as in JSON.

    Raises:
        RequestValidationError: They are not.
    """
    try:
        return model.model_validate(fields, strict=strict or None)
    except ValidationError as error:
        raise validation_error(error) from error


def validation_error(error: ValidationError, *within: str) -> RequestValidationError:
    """Return the error as FastAPI raises it for a body, or for what is `within` one."""
    return RequestValidationError([{**fault, "loc": ("body", *within, *fault["loc"])} for fault in error.errors()])


def _check_charset(content_type: str) -> None:
    """Let in what can be decoded in no time; Starlette takes whatever Python has a codec for."""
    _, options = parse_options_header(content_type)
    try:
        known = codecs.lookup(options.get(b"charset", b"utf-8").decode("latin-1")).name in _CHARSETS
    except (LookupError, ValueError):
        known = False
    if not known:
        raise MalformedBodyError("A form must be in UTF-8.")
