"""The error tree: what can go wrong, and for each kind its HTTP status and machine code. No framework is known here.

`str(error)` is public: it goes to the client or the operator as it stands. Causes are chained and logged, never sent.
The first line of each docstring is the "when" column of the table of errors in docs/operating.md.
"""

from typing import ClassVar


def first_line(error: BaseException) -> str:
    """Return the first line of a foreign error's text, for one of ours; its class's name if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def root_cause(error: BaseException) -> BaseException:
    """Return the error that the others were raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


class TurboError(Exception):
    """Something inside the service failed."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = True
    """False where the same request would fail again; SDKs that retry by themselves are then told not to."""

    def __init__(self, detail: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        """Make an error.

        Args:
            detail: The public reason, a full sentence.
            param: The request field at fault, if it is one.
            retry_after_s: Whole seconds after which trying again makes sense, if ever.
        """
        super().__init__(detail)
        self.param = param
        self.retry_after_s = retry_after_s


# Faults of the request: the client must change something.


class MalformedRequestError(TurboError):
    """What was sent is no HTTP request."""

    status = 400
    code = "malformed_request"


class MalformedBodyError(TurboError):
    """The request body cannot be parsed."""

    status = 400
    code = "malformed_body"


class UnauthorizedError(TurboError):
    """API keys are set, and the request has none of them."""

    status = 401
    code = "invalid_api_key"


class ForbiddenOriginError(TurboError):
    """A browser sent it for a page of another site, which `TURBO_CORS_ORIGINS` does not name."""

    status = 403
    code = "origin_not_allowed"


class NotFoundError(TurboError):
    """There is no such route."""

    status = 404
    code = "not_found"


class ModelNotFoundError(TurboError):
    """The model that the request names is not the one that is served."""

    status = 404
    code = "model_not_found"


class MethodNotAllowedError(TurboError):
    """The route exists, the method does not."""

    status = 405
    code = "method_not_allowed"


class NotAcceptableError(TurboError):
    """`Accept` allows none of the media types that the route can answer with."""

    status = 406
    code = "not_acceptable"


class RequestTimeoutError(TurboError):
    """The header had not arrived within `TURBO_HEADER_TIMEOUT_S`, or the body within `TURBO_BODY_TIMEOUT_S`."""

    status = 408
    code = "request_timeout"


class BodyTooLargeError(TurboError):
    """The request body is over `TURBO_MAX_BODY_BYTES`, or is JSON that has more than 64 KiB beside a picture."""

    status = 413
    code = "body_too_large"


class ImageTooLargeError(TurboError):
    """The uploaded picture has more pixels than `TURBO_MAX_UPLOAD_PIXELS`, or would take too much memory to read."""

    status = 413
    code = "image_too_large"


class UnsupportedMediaTypeError(TurboError):
    """The `Content-Type` is not what the route takes."""

    status = 415
    code = "unsupported_media_type"


class UnsupportedImageError(TurboError):
    """The uploaded file is no PNG, JPEG or WebP picture."""

    status = 415
    code = "unsupported_image"


class InvalidRequestError(TurboError):
    """A field is missing, unknown or out of its bounds; `errors` lists each."""

    status = 422
    code = "invalid_request"


class InvalidImageError(TurboError):
    """The uploaded picture is animated, truncated or damaged, or would take too long to read."""

    status = 422
    code = "invalid_image"


class BeyondDeadlineError(TurboError):
    """This device cannot do the request within `TURBO_DEADLINE_S`, not even when it is idle: ask for less."""

    status = 422
    code = "beyond_deadline"


class QueueFullError(TurboError):
    """As many requests wait as may wait, or as can be done within `TURBO_DEADLINE_S`; come back after `Retry-After`."""

    status = 429
    code = "queue_full"


class RateLimitedError(TurboError):
    """This client asks more often than `TURBO_RATE_LIMIT` allows; come back after `Retry-After`."""

    status = 429
    code = "rate_limited"


class HeadersTooLargeError(TurboError):
    """The request's header has more than 16 KiB, or more than 100 fields."""

    status = 431
    code = "headers_too_large"


class ClientDisconnectedError(TurboError):
    """The client hung up before its answer; seen in logs and metrics only."""

    status = 499
    code = "client_disconnected"


# Faults of the service: the same request may succeed later or elsewhere.


class InferenceError(TurboError):
    """The pipeline failed on this request."""

    status = 500
    code = "inference_failed"


class DeadPictureError(InferenceError):
    """The model's output is no picture: it has values that are no numbers, or one single value."""

    code = "dead_picture"
    retryable = False


class OperatorRefusedError(InferenceError):
    """An operator of the device does not take a picture of this kind; the device itself is well."""

    code = "operator_refused"
    retryable = False


class DeviceOutOfMemoryError(TurboError):
    """The device has no memory for this request at present, also after its cache was emptied."""

    status = 503
    code = "out_of_memory"


class DeviceLostError(TurboError):
    """The device failed and cannot be trusted; the process must be replaced."""

    status = 503
    code = "device_lost"

    def __init__(self, detail: str = "The device failed; the service is being replaced.", *, remedy: str = "") -> None:
        """Make an error; `detail` may say how the device failed, and `remedy`, for the log, what an operator can do."""
        super().__init__(detail, retry_after_s=30)
        self.remedy = remedy

    @property
    def what_failed(self) -> str:
        """The detail without what becomes of the service, for commands that are none."""
        return str(self).replace("; the service is being replaced.", ".")


class NotReadyError(TurboError):
    """The readiness or liveness check fails; `health` says what is wrong."""

    status = 503
    code = "not_ready"


class DrainingError(TurboError):
    """The service is shutting down and finishes only what it has accepted."""

    status = 503
    code = "draining"


class DeadlineExceededError(TurboError):
    """The request was not done within `TURBO_DEADLINE_S`."""

    status = 504
    code = "deadline_exceeded"


# Faults at start: no HTTP answer, one line and a non-zero exit.


class StartError(TurboError):
    """The service cannot start as it is configured."""

    code = "start_failed"


class DeadlineTooShortError(StartError):
    """Not even the picture that the service is warmed up with can be made within `TURBO_DEADLINE_S`."""

    code = "deadline_too_short"


class AddressError(StartError):
    """The service cannot listen where it should."""

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
    """OpenTelemetry's variables ask for traces that cannot be had."""

    code = "traces_unusable"


class WeightsError(StartError):
    """The weights are missing, damaged or not SDXL-Turbo's."""

    code = "weights_unusable"


class DeviceUnavailableError(StartError):
    """The device asked for is not there."""

    code = "device_unavailable"
