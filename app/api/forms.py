"""Strict and bounded multipart forms."""

import codecs
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, TypeVar

from fastapi import Request, UploadFile
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import PydanticCustomError
from python_multipart.multipart import parse_options_header
from starlette.formparsers import MultiPartException, MultiPartParser

from app.errors import InvalidRequestError, MalformedBodyError
from app.images.memory import reserve

Fields = TypeVar("Fields", bound=BaseModel)

_MAX_FILES, _MAX_FIELDS = 16, 32
"""More parts than any form needs: an unknown field is rejected by its name. OpenAI's API accepts 16 pictures."""

_READ_AT_ONCE_BYTES = 1 << 18

_CHARSETS = frozenset({"utf-8", "ascii", "iso8859-1", "cp1252"})
"""Accepted encodings. Python has a hundred more, and some (punycode) take minutes for a megabyte."""


def _is_file(value: object) -> object:
    if isinstance(value, str):
        raise PydanticCustomError("file_expected", "Send the picture as a file.")
    return value


Upload = Annotated[UploadFile, BeforeValidator(_is_file), Field(description="PNG, JPEG or WebP picture to start from.")]


def read_upload(upload: UploadFile) -> bytes | memoryview:
    """Return an uploaded file's bytes, and release its memory or disk space. Blocks.

    A large file is read in pieces, because a single read would hold the GIL for milliseconds.
    """
    with upload.file as file:
        size_bytes = upload.size or 0
        if size_bytes <= _READ_AT_ONCE_BYTES:
            return file.read()
        memory = reserve(size_bytes)
        for at in range(0, size_bytes, _READ_AT_ONCE_BYTES):
            piece = file.read(_READ_AT_ONCE_BYTES)
            memory[at : at + len(piece)] = piece
        return memoryview(memory)


def form_reader(model: type[Fields], *, one_as_list: str | None = None) -> Callable[[Request], AsyncIterator[Fields]]:
    """Return the dependency that reads a multipart form; its files are closed when the request ends.

    The field `one_as_list` may also be sent as `name[]`, as some clients send a list with one element.
    FastAPI itself would treat an empty prompt as missing, and keep the last of several fields of the same name.
    """

    async def read(request: Request) -> AsyncIterator[Fields]:
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
                name = one_as_list if one_as_list and sent == f"{one_as_list}[]" else sent
                if name in fields:
                    reason = f"Send one {name}, not several." if name == one_as_list else f"{name} is sent twice."
                    raise InvalidRequestError(reason, param=name)
                fields[name] = value
            yield checked(model, fields)
        finally:
            await form.close()

    return read


def _check_charset(content_type: str) -> None:
    _, options = parse_options_header(content_type)
    try:
        charset = codecs.lookup(options.get(b"charset", b"utf-8").decode("latin-1")).name
    except (LookupError, ValueError):
        charset = ""
    if charset not in _CHARSETS:
        raise MalformedBodyError("Send the form in UTF-8.")


class _FormParser(MultiPartParser):
    """Starlette's parser drops a last field that is cut off, and decodes a field as Latin-1 if it is not UTF-8."""

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


def checked(model: type[Fields], fields: Any, *within: str, strict: bool = False) -> Fields:
    """Return a body, or the part of it that the names in `within` lead to, as its wire model.

    If `strict`, numbers must be numbers, as in JSON, not strings.

    Raises:
        RequestValidationError: A field is invalid.
    """
    try:
        return model.model_validate(fields, strict=strict or None)
    except ValidationError as error:
        faults = [{**fault, "loc": ("body", *within, *fault["loc"])} for fault in error.errors()]
        raise RequestValidationError(faults) from error
