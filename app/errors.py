"""The error tree: what can go wrong, with the HTTP status and the machine code of each kind.

`str(error)` is public: the client or the operator reads it unchanged. Causes are chained and logged, never sent.
The first line of each docstring is the "when" column of the table of errors in docs/operating.md.
"""

import sys
from pathlib import Path
from typing import ClassVar

SCRIPT = "sdxl-turbo-server"
"""The program that a wheel installs for `python -m app`."""


def program() -> str:
    """Return how the user starts the command line, for texts that name a command."""
    return SCRIPT if Path(sys.argv[0]).name == SCRIPT else "python -m app"


def first_line(error: BaseException) -> str:
    """Return the first line of a foreign error's text without its full stop, or the name of its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def root_cause(error: BaseException) -> BaseException:
    """Return the first error of a chain of causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


class TurboError(Exception):
    """An unexpected error inside the service."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = True
    """False if the same request would fail again; the response then tells SDKs not to retry."""

    def __init_subclass__(cls, *, code: str, status: int = 500, retryable: bool = True) -> None:
        """Take the machine code, the HTTP status and `retryable` from the header of the class."""
        cls.code, cls.status, cls.retryable = code, status, retryable

    def __init__(
        self, detail: str, *, param: str | None = None, retry_after_s: int | None = None, remedy: str = ""
    ) -> None:
        """Make an error from its public reason, a full sentence, and the request field at fault, if any.

        A retry makes sense after `retry_after_s` seconds. `remedy`, for the operator alone, says what to do; commands
        show it after `detail`.
        """
        super().__init__(detail)
        self.detail = detail
        self.param = param
        self.retry_after_s = retry_after_s
        self.remedy = remedy


# Faults of the request: the client must change something.


class MalformedRequestError(TurboError, status=400, code="malformed_request"):
    """The bytes sent are not an HTTP request."""


class MalformedBodyError(TurboError, status=400, code="malformed_body"):
    """The request body cannot be parsed."""


class UnauthorizedError(TurboError, status=401, code="invalid_api_key"):
    """The service has API keys, and the request contains none of them."""


class ForbiddenOriginError(TurboError, status=403, code="origin_not_allowed"):
    """A browser sent the request for a page of another site, which `TURBO_CORS_ORIGINS` does not list."""


class NotFoundError(TurboError, status=404, code="not_found"):
    """There is no such route."""


class ModelNotFoundError(TurboError, status=404, code="model_not_found"):
    """The request names a model that the service does not serve."""


class MethodNotAllowedError(TurboError, status=405, code="method_not_allowed"):
    """The route exists but does not support this method."""


class NotAcceptableError(TurboError, status=406, code="not_acceptable"):
    """`Accept` allows none of the media types that the route can produce."""


class RequestTimeoutError(TurboError, status=408, code="request_timeout"):
    """The header did not arrive within `TURBO_HEADER_TIMEOUT_S`, or the body within `TURBO_BODY_TIMEOUT_S`."""


class InterruptedRequestError(TurboError, status=409, code="interrupted", retryable=False):
    """The client's own `POST /sdapi/v1/interrupt` dropped this request while it waited."""


class BodyTooLargeError(TurboError, status=413, code="body_too_large"):
    """The request body exceeds `TURBO_MAX_BODY_BYTES`, or is JSON with more than 64 KiB beside its pictures."""


class ImageTooLargeError(TurboError, status=413, code="image_too_large"):
    """The uploaded picture has more pixels than `TURBO_MAX_UPLOAD_PIXELS`, or would take too much memory to decode."""


class UnsupportedMediaTypeError(TurboError, status=415, code="unsupported_media_type"):
    """The route does not accept this `Content-Type`."""


class UnsupportedImageError(TurboError, status=415, code="unsupported_image"):
    """The uploaded file is not a PNG, JPEG or WebP picture."""


class InvalidRequestError(TurboError, status=422, code="invalid_request"):
    """A field is missing, unknown or out of bounds; `errors` lists each."""


class InvalidImageError(TurboError, status=422, code="invalid_image"):
    """The uploaded picture is animated, truncated or damaged, or would take too long to decode."""


class BeyondDeadlineError(TurboError, status=422, code="beyond_deadline"):
    """Even an idle device cannot finish this request within ten times `TURBO_DEADLINE_S`: ask for less."""


class QueueFullError(TurboError, status=429, code="queue_full"):
    """The queue is full, or the device cannot finish more within `TURBO_DEADLINE_S`; retry after `Retry-After`."""


class RateLimitedError(TurboError, status=429, code="rate_limited"):
    """This client exceeds `TURBO_RATE_LIMIT` or `TURBO_URL_RATE_LIMIT`; retry after `Retry-After`."""


class HeadersTooLargeError(TurboError, status=431, code="headers_too_large"):
    """The request's header has more than 16 KiB, or more than 100 fields."""


class ClientDisconnectedError(TurboError, status=499, code="client_disconnected"):
    """The client disconnected before the response; only logs and metrics show this."""


# Faults of the service: the same request may succeed later or elsewhere.


class InferenceError(TurboError, code="inference_failed"):
    """The pipeline failed on this request."""


class DeadPictureError(InferenceError, code="dead_picture", retryable=False):
    """The model's output is not a picture: it contains NaN or infinite values, or all its values are equal."""


class OperatorRefusedError(InferenceError, code="operator_refused", retryable=False):
    """An operator of the device does not support a picture of this kind; the device itself works."""


class DeviceOutOfMemoryError(TurboError, status=503, code="out_of_memory"):
    """The device does not have enough memory for this request now, even with an empty cache."""


class DeviceLostError(TurboError, status=503, code="device_lost"):
    """The device failed and its results cannot be trusted; the process must be replaced."""

    def __init__(self, detail: str = "The device failed; the service is being replaced.", *, remedy: str = "") -> None:
        super().__init__(detail, retry_after_s=30, remedy=remedy)
        self.detail = detail.replace("; the service is being replaced.", ".")  # commands show it, and no service runs


class NotReadyError(TurboError, status=503, code="not_ready"):
    """The readiness or liveness check fails; `health` gives the reason."""


class DrainingError(TurboError, status=503, code="draining"):
    """The service is shutting down and finishes only accepted requests."""


class DeadlineExceededError(TurboError, status=504, code="deadline_exceeded"):
    """The request did not finish within `TURBO_DEADLINE_S`, or within the longer time of a larger request."""


# Faults at start: one log line and a non-zero exit code, no HTTP response.


class StartError(TurboError, code="start_failed"):
    """The service cannot start with this configuration."""


class DeadlineTooShortError(StartError, code="deadline_too_short"):
    """Even the warm-up picture takes longer than `TURBO_DEADLINE_S`."""


class AddressError(StartError, code="address_unusable"):
    """The service cannot listen on its address."""


class KeysFileError(StartError, code="keys_unusable"):
    """The file of API keys cannot be used."""


class TracesError(StartError, code="traces_unusable"):
    """The traces that OpenTelemetry's variables request cannot be produced."""


class WeightsError(StartError, code="weights_unusable"):
    """The weights are missing, damaged or not SDXL-Turbo's."""


class MemoryTooSmallError(StartError, code="memory_too_small"):
    """A start takes more memory than the device has, or than the process may use."""

    def __init__(self, detail: str) -> None:
        super().__init__(
            f"{detail} End other programs, raise the memory limit of the container or of the process, or use a larger "
            "machine."
        )


class DeviceUnavailableError(StartError, code="device_unavailable"):
    """The requested device is not available."""
