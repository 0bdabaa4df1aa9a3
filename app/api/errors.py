"""Every error becomes one problem+json body: RFC 9457, with the `error` object that OpenAI's clients read."""

from http import HTTPStatus
from typing import Annotated, Any, Final, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from app.errors import (
    BodyTooLargeError,
    ClientDisconnectedError,
    DrainingError,
    InvalidRequestError,
    MalformedBodyError,
    MethodNotAllowedError,
    NotFoundError,
    QueueFullError,
    RequestTimeoutError,
    TurboError,
    UnauthorizedError,
)
from app.observability.logs import get_logger

_log = get_logger(__name__)

PROBLEM = "application/problem+json"

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",  # pages name what they need themselves
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""What every answer has."""

_FROM_FRAMEWORK: Final[dict[int, type[TurboError]]] = {
    error.status: error
    for error in (
        MalformedBodyError,
        NotFoundError,
        MethodNotAllowedError,
        RequestTimeoutError,
        BodyTooLargeError,
        QueueFullError,
        ClientDisconnectedError,
    )
}
_MAX_FIELDS_LISTED = 20
MAX_NAME_CHARACTERS = 100
"""Of a name that the client sent, as much as is repeated."""

_TOO_MANY_REQUESTS = 429
_SERVER_ERROR = 500


class InvalidField(BaseModel):
    """One field at fault."""

    param: Annotated[str, Field(description="The field's name, dotted where it is nested; empty for the body.")]
    code: str
    detail: str


class ClientError(BaseModel):
    """The same error in the shape that the OpenAI SDKs read."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str


class Problem(BaseModel):
    """Every answer that is no success: RFC 9457, with an `error` object for OpenAI's clients."""

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
    """Answer every error that a handler raises with the one body."""
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
    """Turn what FastAPI and Starlette raise themselves into ours."""
    assert isinstance(error, HTTPException)  # noqa: S101 - as above
    kind = _FROM_FRAMEWORK.get(error.status_code)
    if kind is None:
        raise error
    details = {
        NotFoundError: "There is no such route; /docs lists them."
        if request.app.openapi_url
        else "There is no such route.",
        MalformedBodyError: "The body cannot be parsed.",
        MethodNotAllowedError: f"This route does not take {request.method}.",
    }
    headers = dict(error.headers or {})
    if "Allow" in headers:  # of the first route alone that has the path
        documented = request.app.openapi()["paths"].get(request.scope["path"], {})
        allowed = {*headers["Allow"].split(", "), *map(str.upper, documented)}
        headers["Allow"] = ", ".join(sorted(allowed | ({"HEAD"} if "GET" in allowed else set())))
    return problem_response(kind(details.get(kind, str(error.detail))), request, headers=headers)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    """List the invalid fields with their reasons; nothing of what was sent is repeated but names."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - as above
    fields = [
        InvalidField(param=_param(item), code=item["type"], detail=_reason(item))
        for item in error.errors()[:_MAX_FIELDS_LISTED]
    ]
    first = fields[0]
    detail = f"{first.param}: {first.detail}" if first.param else first.detail
    return problem_response(InvalidRequestError(detail, param=first.param or None), request, errors=fields)


def _param(item: dict[str, Any]) -> str:
    """Name the field at fault: where Pydantic says, or what our own rules of several fields name."""
    named: str | None = item.get("ctx", {}).get("param")
    return named or ".".join(str(part) for part in item["loc"][1:])[:MAX_NAME_CHARACTERS]


def _reason(item: dict[str, Any]) -> str:
    if item["type"] in ("model_attributes_type", "model_type"):
        return f"{_param(item) or 'The body'} must be a JSON object."
    reason: str = item["msg"]
    return reason


def problem_response(
    error: TurboError,
    request: Request,
    *,
    errors: list[InvalidField] | None = None,
    health: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Make the one answer for an error, and count it.

    Args:
        error: What went wrong.
        request: The request that it went wrong for.
        errors: The fields at fault, where several can be.
        health: What a health check found.
        headers: Headers of the framework's, such as `Allow`.
    """
    request.state.observer.on_error(error.code)
    sent_headers = {"Cache-Control": "no-store", **(headers or {})}
    if error.retry_after_s is not None:
        sent_headers["Retry-After"] = str(error.retry_after_s)
    if not error.retryable:
        sent_headers["X-Should-Retry"] = "false"  # read by OpenAI's SDKs, which else retry every 5xx
    if isinstance(error, UnauthorizedError):
        sent_headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, DrainingError | BodyTooLargeError | RequestTimeoutError):
        sent_headers["Connection"] = "close"
    return JSONResponse(
        problem_body(error, request_id=request.state.request_id, errors=errors, health=health),
        status_code=error.status,
        media_type=PROBLEM,
        headers=sent_headers,
    )


def problem_body(
    error: TurboError,
    *,
    request_id: str,
    errors: list[InvalidField] | None = None,
    health: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Make the one body; `problem_response` says of what."""
    problem = Problem(
        type=f"urn:sdxl-turbo-server:problem:{error.code}",
        title=_title(error.status),
        status=error.status,
        detail=str(error),
        code=error.code,
        request_id=request_id,
        errors=errors,
        health=health,
        error=ClientError(
            message=str(error),
            type=_openai_type(error.status),
            param=error.param,
            code=error.code,
        ),
    )
    return problem.model_dump(exclude_none=True, exclude={"error"}) | {"error": problem.error.model_dump()}


def _title(status: int) -> str:
    return "Client Closed Request" if status == ClientDisconnectedError.status else HTTPStatus(status).phrase


def _openai_type(status: int) -> Literal["invalid_request_error", "rate_limit_error", "server_error"]:
    if status == _TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "server_error" if status >= _SERVER_ERROR else "invalid_request_error"
