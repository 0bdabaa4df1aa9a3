"""The response of every error: problem+json (RFC 9457), with the `error` object that OpenAI's clients read."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any, Literal

import structlog
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
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

HUGGING_FACE_PATH = "/"
"""Here `error` is a text (`ProblemWithText`)."""

_MAX_FIELDS_LISTED = 20
MAX_NAME_CHARACTERS = 100
"""A name that the client sent is repeated up to this length."""


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


class ProblemWithText(Problem):
    """The same, but with the reason alone as `error`: Hugging Face's clients show that field as it is."""

    error: str  # type: ignore[assignment]


def add_error_handlers(app: FastAPI) -> None:
    """Make a problem of every error that a handler raises."""
    app.exception_handler(TurboError)(_on_turbo_error)
    app.exception_handler(HTTPException)(_on_http_exception)
    app.exception_handler(RequestValidationError)(_on_validation_error)


async def _on_turbo_error(request: Request, error: TurboError) -> JSONResponse:
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR and error.__cause__ is not None:
        ids = {"request_id": request.state.request_id, **request.state.observer.ids}
        _log.error("request_failed", code=error.code, exc_info=error, **ids)
    return problem_response(error, request)


async def _on_http_exception(request: Request, error: HTTPException) -> Response:
    """Convert the errors of FastAPI and Starlette, and answer OPTIONS on every route that exists."""
    problems: dict[int, TurboError] = {
        400: errors.MalformedBodyError("The body cannot be parsed."),
        404: errors.NotFoundError(
            f"There is no such route{'; /docs lists the routes' if request.app.state.context.settings.docs else ''}."
        ),
        405: errors.MethodNotAllowedError(f"This route does not accept {request.method}."),
    }
    if error.status_code not in problems:
        raise error
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # Starlette lists the methods of the first route with this path only, and none for files.
        document = await run_in_threadpool(request.app.openapi)  # takes a tenth of a second if it is not made yet
        documented = document["paths"].get(request.scope["path"], {})
        allowed = {"OPTIONS", *headers.get("Allow", "GET").split(", "), *map(str.upper, documented)}
        headers["Allow"] = ", ".join(sorted(allowed | ({"HEAD"} if "GET" in allowed else set())))
        if request.method == "OPTIONS":
            return Response(status_code=int(HTTPStatus.NO_CONTENT), headers=headers)
    return problem_response(problems[error.status_code], request, headers=headers)


async def _on_validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
    """List the invalid fields with their reasons. Of what the client sent, only names are repeated."""
    fields = [_invalid_field(fault) for fault in error.errors()[:_MAX_FIELDS_LISTED]]
    first = fields[0]
    detail = f"{first.param}: {first.detail}" if first.param else first.detail
    return problem_response(errors.InvalidRequestError(detail, param=first.param or None), request, errors=fields)


def _invalid_field(fault: dict[str, Any]) -> InvalidField:
    """Return the field that Pydantic names, or that a rule of several fields names in its context."""
    param = fault.get("ctx", {}).get("param") or ".".join(map(str, fault["loc"][1:]))[:MAX_NAME_CHARACTERS]
    detail = fault["msg"]
    if fault["type"] in ("model_attributes_type", "model_type"):
        detail = f"{param or 'The body'} must be a JSON object."
    return InvalidField(param=param, code=fault["type"], detail=detail)


def problem_response(
    error: TurboError, request: Request, *, headers: Mapping[str, str] | None = None, **findings: Any
) -> JSONResponse:
    """Make the response of an error with further headers, such as `Allow`, and count it. See `problem_body`."""
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
    if error.param is not None:
        findings.setdefault("errors", [InvalidField(param=error.param, code=error.code, detail=str(error))])
    body = problem_body(error, request_id=request.state.request_id, **findings)
    if request.scope["path"] == HUGGING_FACE_PATH:
        body["error"] = str(error)
    return JSONResponse(body, error.status, sent_headers, PROBLEM)


def problem_body(error: TurboError, *, request_id: str, **findings: Any) -> dict[str, Any]:
    """Make the body of an error. `findings` are the problem's `errors` or `health`."""
    disconnected = error.status == errors.ClientDisconnectedError.status
    problem = Problem(
        type=f"urn:sdxl-turbo-server:problem:{error.code}",
        title="Client Closed Request" if disconnected else HTTPStatus(error.status).phrase,
        status=error.status,
        detail=str(error),
        code=error.code,
        request_id=request_id,
        error=ClientError(message=str(error), type=_openai_type(error.status), param=error.param, code=error.code),
        **findings,
    )
    return problem.model_dump(exclude_none=True, exclude={"error"}) | {"error": problem.error.model_dump()}


def _openai_type(status: int) -> Literal["invalid_request_error", "rate_limit_error", "server_error"]:
    if status == errors.QueueFullError.status:
        return "rate_limit_error"
    return "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
