"""Bounded multipart forms, read whole or not at all."""

import codecs
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Annotated, Any

import starlette.datastructures
from fastapi import Depends, Request, UploadFile
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError
from python_multipart.multipart import parse_options_header
from starlette.formparsers import MultiPartException, MultiPartParser

from app.api.errors import MAX_NAME_CHARACTERS
from app.errors import InvalidRequestError, MalformedBodyError
from app.images.memory import reserve
from app.modes.fields import Uploads

_MAX_FILES, MAX_FIELDS = 16, 32
"""More parts than any form needs: an unknown field is rejected by its name. OpenAI's API accepts 16 pictures."""

_READ_AT_ONCE_BYTES = 1 << 18

_CHARSETS = frozenset({"utf-8", "ascii", "iso8859-1", "cp1252"})
"""Accepted encodings. Python has a hundred more, and some (punycode) take minutes for a megabyte."""


def _is_file(value: object) -> object:
    if isinstance(value, str):
        raise PydanticCustomError("file_expected", "Send the picture as a file.")
    return value


Upload = Annotated[UploadFile, BeforeValidator(_is_file), Field(description="PNG, JPEG or WebP picture to start from.")]
"""A file; the OpenAPI document's form knows it by the name `image` or `mask`."""


def read_uploads(**files: UploadFile | None) -> Uploads:
    """Return the functions that read a form's files, by the names of their fields. A field may have none."""
    return {name: partial(read_upload, file) for name, file in files.items() if file is not None}


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


FormItems = Sequence[tuple[str, str | starlette.datastructures.UploadFile]]
"""The fields of a form with their values, in the order in which they were sent; a name may repeat."""


async def _read_form(request: Request) -> AsyncIterator[FormItems]:
    """Read a multipart form; its files are closed when the request ends.

    FastAPI itself would treat an empty prompt as missing, and keep the last of several fields of the same name.
    """
    _check_charset(request.headers["content-type"])
    parser = _FormParser(request.headers, request.stream(), max_files=_MAX_FILES, max_fields=MAX_FIELDS)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise MalformedBodyError(f"The form cannot be read: {error.message}") from error
    try:
        if not parser.ended:
            raise MalformedBodyError("The form ends before its closing boundary.")
        yield form.multi_items()
    finally:
        await form.close()


Form = Annotated[FormItems, Depends(_read_form)]


def fields_of(form: FormItems) -> dict[str, Any]:
    """Return a form's fields by name.

    Raises:
        InvalidRequestError: Two have the same name.
    """
    fields: dict[str, Any] = {}
    for name, value in form:
        if name in fields:
            shown = name[:MAX_NAME_CHARACTERS]
            raise InvalidRequestError(f"{shown} is sent twice.", param=shown)
        fields[name] = value
    return fields


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
