"""The response of every error: problem+json (RFC 9457), with the `error` object that OpenAI's clients read."""

from http import HTTPStatus
from typing import Annotated, Any, Final, Literal

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from app import errors
from app.errors import TurboError

_log = structlog.stdlib.get_logger(__name__)

PROBLEM = "application/problem+json"

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",  # a page allows its own sources
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of every response."""

_FROM_FRAMEWORK: Final[dict[int, type[TurboError]]] = {
    error.status: error
    for error in (
        errors.MalformedBodyError,
        errors.NotFoundError,
        errors.MethodNotAllowedError,
        errors.RequestTimeoutError,
        errors.BodyTooLargeError,
        errors.QueueFullError,
        errors.ClientDisconnectedError,
    )
}
_MAX_FIELDS_LISTED = 20
MAX_NAME_CHARACTERS = 100
"""A name that the client sent is repeated up to this length."""

_SERVER_ERROR = 500


class InvalidField(BaseModel):
    """An invalid field."""

    param: Annotated[str, Field(description="The field's name, dotted if nested; empty for the body.")]
    code: str
    detail: str


class ClientError(BaseModel):
    """The same error in the form that the OpenAI SDKs read."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str


class Problem(BaseModel):
    """The body of every error: RFC 9457, with an `error` object for OpenAI's clients."""

    type: Annotated[str, Field(description="A URN that names the kind of error.")]
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[InvalidField] | None = None
    health: dict[str, Any] | None = None
    error: ClientError


def add_error_handlers(app: FastAPI) -> None:
    """Make a problem of every error that a handler raises."""
    app.add_exception_handler(TurboError, _on_turbo_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)


async def _on_turbo_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, TurboError)  # noqa: S101 - Starlette's handler type is wider than the registration
    if error.status >= _SERVER_ERROR and error.__cause__ is not None:
        ids = {"request_id": request.state.request_id, **request.state.observer.ids}
        _log.error("request_failed", code=error.code, exc_info=error, **ids)
    return problem_response(error, request)


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Convert the errors of FastAPI and Starlette."""
    assert isinstance(error, HTTPException)  # noqa: S101 - as above
    kind = _FROM_FRAMEWORK.get(error.status_code)
    if kind is None:
        raise error
    details = {
        errors.NotFoundError: f"There is no such route{'; /docs lists the routes' if request.app.openapi_url else ''}.",
        errors.MalformedBodyError: "The body cannot be parsed.",
        errors.MethodNotAllowedError: f"This route does not accept {request.method}.",
    }
    headers = dict(error.headers or {})
    if "Allow" in headers:  # Starlette lists the methods of the first route with this path only
        documented = request.app.openapi()["paths"].get(request.scope["path"], {})
        allowed = {*headers["Allow"].split(", "), *map(str.upper, documented)}
        headers["Allow"] = ", ".join(sorted(allowed | ({"HEAD"} if "GET" in allowed else set())))
    return problem_response(kind(details.get(kind, str(error.detail))), request, headers=headers)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    """List the invalid fields with their reasons. Of what the client sent, only names are repeated."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - as above
    fields = [_invalid_field(fault) for fault in error.errors()[:_MAX_FIELDS_LISTED]]
    first = fields[0]
    detail = f"{first.param}: {first.detail}" if first.param else first.detail
    return problem_response(errors.InvalidRequestError(detail, param=first.param or None), request, fields=fields)


def _invalid_field(fault: dict[str, Any]) -> InvalidField:
    """Return the field that Pydantic names, or that a rule of several fields names in its context."""
    param = fault.get("ctx", {}).get("param") or ".".join(map(str, fault["loc"][1:]))[:MAX_NAME_CHARACTERS]
    detail = fault["msg"]
    if fault["type"] in ("model_attributes_type", "model_type"):
        detail = f"{param or 'The body'} must be a JSON object."
    return InvalidField(param=param, code=fault["type"], detail=detail)


def problem_response(
    error: TurboError,
    request: Request,
    *,
    fields: list[InvalidField] | None = None,
    health: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Make the response of an error, and count it.

    Args:
        error: The error.
        request: The request that failed.
        fields: The invalid fields, if the error is about fields.
        health: The findings of a health check.
        headers: Further headers, such as `Allow`.
    """
    request.state.observer.on_error(error.code)
    sent_headers = {"Cache-Control": "no-store", **(headers or {})}
    if error.retry_after_s is not None:
        sent_headers["Retry-After"] = str(error.retry_after_s)
    if not error.retryable:
        sent_headers["X-Should-Retry"] = "false"  # without it, OpenAI's SDKs retry every 5xx
    if isinstance(error, errors.UnauthorizedError):
        sent_headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, errors.DrainingError | errors.BodyTooLargeError | errors.RequestTimeoutError):
        sent_headers["Connection"] = "close"
    return JSONResponse(
        problem_body(error, request_id=request.state.request_id, fields=fields, health=health),
        status_code=error.status,
        media_type=PROBLEM,
        headers=sent_headers,
    )


def problem_body(
    error: TurboError,
    *,
    request_id: str,
    fields: list[InvalidField] | None = None,
    health: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Make the body of an error; see `problem_response`."""
    problem = Problem(
        type=f"urn:sdxl-turbo-server:problem:{error.code}",
        title=_title(error.status),
        status=error.status,
        detail=str(error),
        code=error.code,
        request_id=request_id,
        errors=fields,
        health=health,
        error=ClientError(message=str(error), type=_openai_type(error.status), param=error.param, code=error.code),
    )
    return problem.model_dump(exclude_none=True, exclude={"error"}) | {"error": problem.error.model_dump()}


def _title(status: int) -> str:
    return "Client Closed Request" if status == errors.ClientDisconnectedError.status else HTTPStatus(status).phrase


def _openai_type(status: int) -> Literal["invalid_request_error", "rate_limit_error", "server_error"]:
    if status == errors.QueueFullError.status:
        return "rate_limit_error"
    return "server_error" if status >= _SERVER_ERROR else "invalid_request_error"
