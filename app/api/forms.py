"""Multipart forms: read strictly, and bounded."""

import codecs
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

from fastapi import Request, UploadFile
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import PydanticCustomError
from python_multipart.multipart import parse_options_header
from starlette.formparsers import MultiPartException, MultiPartParser

from app.errors import InvalidRequestError, MalformedBodyError

Fields = TypeVar("Fields", bound=BaseModel)

_MAX_FILES, _MAX_FIELDS = 16, 32
"""Parts that a form may have; more than any form needs, so that a field too many is named and not a part counted. Of
pictures to edit OpenAI's API takes 16."""

_CHARSETS = frozenset({"utf-8", "ascii", "iso8859-1", "cp1252"})
"""What a form may be in. Python knows a hundred more, and some of them (punycode) take minutes for a megabyte."""


def _is_file(value: object) -> object:
    if isinstance(value, str):
        raise PydanticCustomError("file_expected", "Send the picture as a file.")
    return value


Upload = Annotated[UploadFile, BeforeValidator(_is_file), Field(description="PNG, JPEG or WebP picture to start from.")]


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
