"""The error tree: what can go wrong, with the HTTP status and the machine code of each kind.

`str(error)` is public: the client or the operator reads it unchanged. Causes are chained and logged, never sent.
The first line of each docstring is the "when" column of the table of errors in docs/operating.md.
"""

from typing import ClassVar


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

    def __init__(self, detail: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        """Make an error.

        Args:
            detail: The public reason, a full sentence.
            param: The request field at fault, if any.
            retry_after_s: Whole seconds after which a retry makes sense.
        """
        super().__init__(detail)
        self.param = param
        self.retry_after_s = retry_after_s


# Faults of the request: the client must change something.


class MalformedRequestError(TurboError):
    """The bytes sent are not an HTTP request."""

    status, code = 400, "malformed_request"


class MalformedBodyError(TurboError):
    """The request body cannot be parsed."""

    status, code = 400, "malformed_body"


class UnauthorizedError(TurboError):
    """The service has API keys, and the request contains none of them."""

    status, code = 401, "invalid_api_key"


class ForbiddenOriginError(TurboError):
    """A browser sent the request for a page of another site, which `TURBO_CORS_ORIGINS` does not list."""

    status, code = 403, "origin_not_allowed"


class NotFoundError(TurboError):
    """There is no such route."""

    status, code = 404, "not_found"


class ModelNotFoundError(TurboError):
    """The request names a model that the service does not serve."""

    status, code = 404, "model_not_found"


class MethodNotAllowedError(TurboError):
    """The route exists but does not support this method."""

    status, code = 405, "method_not_allowed"


class NotAcceptableError(TurboError):
    """`Accept` allows none of the media types that the route can produce."""

    status, code = 406, "not_acceptable"


class RequestTimeoutError(TurboError):
    """The header did not arrive within `TURBO_HEADER_TIMEOUT_S`, or the body within `TURBO_BODY_TIMEOUT_S`."""

    status, code = 408, "request_timeout"


class BodyTooLargeError(TurboError):
    """The request body exceeds `TURBO_MAX_BODY_BYTES`, or is JSON with more than 64 KiB besides a picture."""

    status, code = 413, "body_too_large"


class ImageTooLargeError(TurboError):
    """The uploaded picture has more pixels than `TURBO_MAX_UPLOAD_PIXELS`, or would take too much memory to decode."""

    status, code = 413, "image_too_large"


class UnsupportedMediaTypeError(TurboError):
    """The route does not accept this `Content-Type`."""

    status, code = 415, "unsupported_media_type"


class UnsupportedImageError(TurboError):
    """The uploaded file is not a PNG, JPEG or WebP picture."""

    status, code = 415, "unsupported_image"


class InvalidRequestError(TurboError):
    """A field is missing, unknown or out of bounds; `errors` lists each."""

    status, code = 422, "invalid_request"


class InvalidImageError(TurboError):
    """The uploaded picture is animated, truncated or damaged, or would take too long to decode."""

    status, code = 422, "invalid_image"


class BeyondDeadlineError(TurboError):
    """Even an idle device cannot finish this request within `TURBO_DEADLINE_S`: ask for less."""

    status, code = 422, "beyond_deadline"


class QueueFullError(TurboError):
    """The queue is full, or the device cannot finish more within `TURBO_DEADLINE_S`; retry after `Retry-After`."""

    status, code = 429, "queue_full"


class RateLimitedError(TurboError):
    """This client sends more requests than `TURBO_RATE_LIMIT` allows; retry after `Retry-After`."""

    status, code = 429, "rate_limited"


class HeadersTooLargeError(TurboError):
    """The request's header has more than 16 KiB, or more than 100 fields."""

    status, code = 431, "headers_too_large"


class ClientDisconnectedError(TurboError):
    """The client disconnected before the response; only logs and metrics show this."""

    status, code = 499, "client_disconnected"


# Faults of the service: the same request may succeed later or elsewhere.


class InferenceError(TurboError):
    """The pipeline failed on this request."""

    code = "inference_failed"


class DeadPictureError(InferenceError):
    """The model's output is not a picture: it contains NaN or infinite values, or all its values are equal."""

    code, retryable = "dead_picture", False


class OperatorRefusedError(InferenceError):
    """An operator of the device does not support a picture of this kind; the device itself works."""

    code, retryable = "operator_refused", False


class DeviceOutOfMemoryError(TurboError):
    """The device does not have enough memory for this request now, even with an empty cache."""

    status, code = 503, "out_of_memory"


class DeviceLostError(TurboError):
    """The device failed and its results cannot be trusted; the process must be replaced."""

    status, code = 503, "device_lost"

    def __init__(self, detail: str = "The device failed; the service is being replaced.", *, remedy: str = "") -> None:
        """Make an error; `remedy`, for the operator alone, says what to do. Commands show `detail`: no service runs."""
        super().__init__(detail, retry_after_s=30)
        self.detail = detail.replace("; the service is being replaced.", ".")
        self.remedy = remedy


class NotReadyError(TurboError):
    """The readiness or liveness check fails; `health` gives the reason."""

    status, code = 503, "not_ready"


class DrainingError(TurboError):
    """The service is shutting down and finishes only accepted requests."""

    status, code = 503, "draining"


class DeadlineExceededError(TurboError):
    """The request did not finish within `TURBO_DEADLINE_S`."""

    status, code = 504, "deadline_exceeded"


# Faults at start: one log line and a non-zero exit code, no HTTP response.


class StartError(TurboError):
    """The service cannot start with this configuration."""

    code = "start_failed"


class DeadlineTooShortError(StartError):
    """Even the warm-up picture takes longer than `TURBO_DEADLINE_S`."""

    code = "deadline_too_short"


class AddressError(StartError):
    """The service cannot listen on its address."""

    code = "address_unusable"

    def __init__(self, detail: str, *, remedy: str) -> None:
        """Make an error; `remedy` says what an operator can do."""
        super().__init__(f"{detail} {remedy}")
        self.detail = detail
        self.remedy = remedy


class KeysFileError(StartError):
    """The file of API keys cannot be used."""

    code = "keys_unusable"


class TracesError(StartError):
    """The traces that OpenTelemetry's variables request cannot be produced."""

    code = "traces_unusable"


class WeightsError(StartError):
    """The weights are missing, damaged or not SDXL-Turbo's."""

    code = "weights_unusable"


class DeviceUnavailableError(StartError):
    """The requested device is not available."""

    code = "device_unavailable"
