"""The OpenAPI document's description of answers: headers of pictures, and errors as problem+json."""

from functools import cache
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from app import errors
from app.api.errors import PROBLEM, Problem
from app.errors import TurboError
from app.images.encoding import MediaType
from app.modes.fields import describe_max_steps
from app.pipelines.prompt_options import MAX_WINDOWED_TOKENS


def _header(description: str, **schema: Any) -> dict[str, Any]:
    return {"description": description, "schema": schema}


_ANY_HEADERS = {"X-Request-ID": _header("The client's id if it is valid, otherwise a new one.", type="string")}

GENERATION_HEADERS = {
    **_ANY_HEADERS,
    "X-Seed": _header("Seed of the first picture.", type="integer"),
    "X-Steps": _header("Denoising steps that ran.", type="integer"),
    "X-Image-Size": _header("WIDTHxHEIGHT of the pictures.", type="string", pattern=r"^\d+x\d+$"),
    "X-Prompt-Tokens": _header(
        "CLIP tokens used, with the start and end marks of each window: at most 77 in each.",
        type="integer",
        maximum=MAX_WINDOWED_TOKENS,
    ),
    "X-Prompt-Truncated": _header("`true` if the prompt was cut; otherwise absent.", type="string"),
    "X-Model": _header("The model that drew.", type="string"),
    "Server-Timing": _header("Milliseconds per stage: decode (of an upload), queue, inference, encode.", type="string"),
}

TOLD_HEADERS = {
    "X-Ignored-Parameters": _header("Names of parameters without effect, which were ignored.", type="string"),
    "X-Adjusted-Parameters": _header("Changed parameters, such as num_inference_steps=20->4.", type="string"),
}

TAG_HEADERS = {
    **_ANY_HEADERS,
    "ETag": _header("Names the answer's bytes; present if the request has a seed.", type="string"),
}

Responses = dict[int | str, dict[str, Any]]


def problems(*kinds: type[TurboError], model: type[BaseModel] = Problem) -> Responses:
    """Describe a route's errors; kinds with the same status share one description. `model` is their body."""
    by_status: dict[int, list[type[TurboError]]] = {}
    for kind in kinds:
        by_status.setdefault(kind.status, []).append(kind)
    return {
        status: {
            "model": model,
            "description": " ".join(f"`{kind.code}`: {(kind.__doc__ or '').strip()}" for kind in same),
        }
        for status, same in sorted(by_status.items())
    }


URL_PROBLEMS = (
    errors.UnauthorizedError,
    errors.ForbiddenOriginError,
    errors.InvalidRequestError,
    errors.BeyondDeadlineError,
    errors.QueueFullError,
    errors.RateLimitedError,
    errors.TurboError,
    errors.InferenceError,
    errors.DeadPictureError,
    errors.OperatorRefusedError,
    errors.DeviceOutOfMemoryError,
    errors.DeviceLostError,
    errors.DrainingError,
    errors.DeadlineExceededError,
)
TEXT_PROBLEMS = (
    errors.MalformedBodyError,
    errors.RequestTimeoutError,
    errors.BodyTooLargeError,
    errors.UnsupportedMediaTypeError,
    *URL_PROBLEMS,
)
PICTURE_PROBLEMS = (
    *TEXT_PROBLEMS,
    errors.ImageTooLargeError,
    errors.UnsupportedImageError,
    errors.InvalidImageError,
)

JSON = "application/json"
FORM = "multipart/form-data"
BINARY = "application/octet-stream"

FILE_FIELDS = frozenset({"image", "mask"})
"""Fields of forms that are files."""


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """Describe a JSON body."""
    return {"requestBody": {"required": True, "content": {JSON: {"schema": _schema_of(model)}}}}


def form_body(form: type[BaseModel]) -> dict[str, Any]:
    """Describe a multipart form with a picture in its field `image`, and perhaps a mask in `mask`."""
    schema = _schema_as_text(form)
    for name in FILE_FIELDS & schema["properties"].keys():
        # Not contentMediaType alone: generators of clients would take it for text.
        schema["properties"][name]["format"] = "binary"
    files = FILE_FIELDS & schema["properties"].keys()
    content = {"schema": schema, "encoding": {name: {"contentType": ", ".join(MediaType)} for name in sorted(files)}}
    return {"requestBody": {"required": True, "content": {FORM: content}}}


def query_parameters(query: type[BaseModel]) -> dict[str, Any]:
    """Describe the parameters of a query."""
    schema = _schema_as_text(query)
    return {
        "parameters": [
            {
                "name": name,
                "in": "query",
                "required": name in schema["required"],
                "description": field.pop("description"),
                "schema": field,
            }
            for name, field in schema["properties"].items()
        ]
    }


def _schema_as_text(model: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of fields that are sent as text: they cannot be null."""
    schema = _schema_of(model)
    nulls = [name for name, field in schema["properties"].items() if field.get("type") == "null"]
    for name in nulls:
        del schema["properties"][name]
    for field in schema["properties"].values():
        for option in field.pop("anyOf", ()):
            if option != {"type": "null"}:
                field.update({**option, **field})  # the field's own description is more specific than its type's
        if isinstance(field.get("type"), list):
            field["type"] = field["type"][0]
        if field.get("default", 0) is None:
            del field["default"]
    return schema


def _schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return a body's schema as generators of clients need it.

    It stands in the operation and has no title: openapi-typescript requires the fields with defaults of a named schema,
    and openapi-python-client would put the path before the title. Both show only descriptions beside `anyOf`.
    """
    schema = model.model_json_schema()
    del schema["title"]
    for field in schema["properties"].values():
        field.pop("title", None)
        for option in field.get("anyOf", ()):
            if "description" in option:
                field.setdefault("description", option.pop("description"))
    return schema


_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "basic": {"type": "http", "scheme": "basic", "description": "The key as the password, with any user name."},
}


def add_openapi(app: FastAPI, *, with_keys: bool, max_steps: int) -> None:
    """Complete the app's OpenAPI document. `with_keys`: the service needs API keys. `max_steps` of a request."""
    generate = app.openapi

    @cache
    def openapi() -> dict[str, Any]:
        document = generate()
        describe_max_steps(document["paths"], max_steps)
        if with_keys:
            document["components"]["securitySchemes"] = _KEYS
        for path in document["paths"].values():
            for operation in path.values():
                if with_keys and "401" in operation["responses"]:
                    operation["security"] = [{scheme: []} for scheme in _KEYS]
                if operation["responses"].get("422", {}).get("description") == "Validation Error":
                    del operation["responses"]["422"]  # FastAPI's, for path parameters that accept any text
                for status, response in operation["responses"].items():
                    _finish_response(status, response)
        for unused in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(unused, None)
        return document

    # FastAPI documents replacing this method as the way to change the document.
    app.openapi = openapi  # type: ignore[method-assign]


def _finish_response(status: str, response: dict[str, Any]) -> None:
    """Set the media type of errors, and the headers of every answer."""
    response.setdefault("headers", _ANY_HEADERS)
    if status[0] in "45":
        content = response["content"]
        content[PROBLEM] = content.pop(JSON)
        if status in ("429", "503", "504"):
            response["headers"] = {
                **_ANY_HEADERS,
                "Retry-After": _header("Seconds to wait before a retry.", type="integer", minimum=1),
            }
