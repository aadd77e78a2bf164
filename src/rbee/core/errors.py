"""Every error that rbee raises, and the HTTP status that each one gets.

RbeeError
├── StartupError                 the daemon does not start (an exit code, never HTTP)
│   ├── SettingsError            2
│   ├── StateDirectoryInUse      3
│   ├── PortInUse                3
│   └── UnsafeBind               2
└── RequestError                 a call is refused or fails (a status, see STATUS)
    ├── MalformedRequest         not HTTP, or not JSON
    ├── BadModelReference        the reference itself is not well formed
    ├── NotAModelFile            the file is there, and is not a GGUF
    ├── InvalidField             well formed JSON, wrong content
    ├── UnsupportedMediaType     a body that is not declared as JSON
    ├── BodyTooLarge
    ├── HeaderTooLarge
    ├── Misdirected              a Host that is not ours
    ├── Unauthorized             no key, or one that nobody knows
    ├── Forbidden                a known key that may not do this
    ├── RouteNotFound
    ├── MethodNotAllowed
    ├── WorkerNotFound
    ├── ModelNotFound
    ├── AliasInUse
    ├── WorkerIdInUse
    ├── OlderIncarnation
    ├── IllegalTransition        the worker cannot take this event in its state
    ├── RequestNotFound          it has ended, or was never there
    ├── RequestCancelled         an admin has ended it
    ├── TooManyRequests          the key may not ask for more now
    ├── QueueFull
    ├── QueueTimeout
    ├── NoReadyWorker
    ├── BufferFull               too many bytes are waiting in the gateway
    ├── TooManyConnections       more clients at once than there are descriptors for
    ├── ShuttingDown
    ├── NoPortLeft
    ├── CircuitOpen              the same thing failed too often; it is tried again later
    ├── CircuitNotFound
    ├── DoesNotFit               the machine has not enough of something; nothing was started
    ├── RequestTimeout           the client took too long to send its request
    ├── WorkerLost               the worker went away while it answered
    ├── ControlUnavailable       the control API does not answer (yet)
    └── UnexpectedError          our own fault
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Final


class RbeeError(Exception):
    """The base of all of them.

    ``message`` says what was wrong and what to do; it never holds a token or a stack trace.
    ``details`` holds JSON values only.
    """

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, /, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def body(self, request_id: str) -> dict[str, Any]:
        """The JSON body that a client gets: error.code, error.message, error.details, request_id."""
        error = {"code": self.code, "message": self.message, "details": self.details}
        return {"error": error, "request_id": request_id}


class StartupError(RbeeError):
    exit_code: ClassVar[int] = 1


class SettingsError(StartupError):
    code = "bad_settings"
    exit_code = 2


class UnsafeBind(StartupError):
    code = "unsafe_bind"
    exit_code = 2


class StateDirectoryInUse(StartupError):
    code = "state_directory_in_use"
    exit_code = 3


class PortInUse(StartupError):
    code = "port_in_use"
    exit_code = 3


class RequestError(RbeeError):
    """A call that is refused or that failed; STATUS holds its status.

    ``retry_after`` (seconds, or None) becomes the Retry-After header.
    """

    retry_after: float | None = None

    def __init__(self, message: str, /, *, retry_after: float | None = None, **details: Any) -> None:
        super().__init__(message, **details)
        if retry_after is not None:
            self.retry_after = retry_after


class MalformedRequest(RequestError):
    code = "malformed_request"


class BadModelReference(RequestError):
    code = "bad_model_reference"


class NotAModelFile(RequestError):
    code = "not_a_model_file"


class InvalidField(RequestError):
    code = "invalid_field"


class UnsupportedMediaType(RequestError):
    code = "unsupported_media_type"


class BodyTooLarge(RequestError):
    code = "body_too_large"


class HeaderTooLarge(RequestError):
    code = "header_too_large"


class Misdirected(RequestError):
    code = "misdirected_request"


class Unauthorized(RequestError):
    code = "unauthorized"


class Forbidden(RequestError):
    code = "forbidden"


class RouteNotFound(RequestError):
    code = "route_not_found"


class MethodNotAllowed(RequestError):
    code = "method_not_allowed"


class WorkerNotFound(RequestError):
    code = "worker_not_found"


class ModelNotFound(RequestError):
    code = "model_not_found"


class AliasInUse(RequestError):
    code = "alias_in_use"


class WorkerIdInUse(RequestError):
    code = "worker_id_in_use"


class OlderIncarnation(RequestError):
    code = "older_incarnation"


class IllegalTransition(RequestError):
    code = "illegal_transition"


class RequestNotFound(RequestError):
    code = "request_not_found"


class RequestCancelled(RequestError):
    code = "request_cancelled"


class TooManyRequests(RequestError):
    code = "too_many_requests"


class QueueFull(RequestError):
    code = "queue_full"


class QueueTimeout(RequestError):
    code = "queue_timeout"


class NoReadyWorker(RequestError):
    code = "no_ready_worker"


class BufferFull(RequestError):
    code = "buffer_full"


class TooManyConnections(RequestError):
    code = "too_many_connections"


class ShuttingDown(RequestError):
    code = "shutting_down"


class NoPortLeft(RequestError):
    code = "no_port_left"


class CircuitOpen(RequestError):
    code = "circuit_open"


class CircuitNotFound(RequestError):
    code = "circuit_not_found"


class DoesNotFit(RequestError):
    code = "insufficient_resources"


class RequestTimeout(RequestError):
    code = "request_timeout"


class WorkerLost(RequestError):
    code = "worker_lost"


class ControlUnavailable(RequestError):
    code = "control_unavailable"


class UnexpectedError(RequestError):
    code = "unexpected_error"


STATUS: Final[Mapping[type[RequestError], int]] = {
    MalformedRequest: 400,
    BadModelReference: 400,
    NotAModelFile: 400,
    Unauthorized: 401,
    Forbidden: 403,
    RouteNotFound: 404,
    WorkerNotFound: 404,
    ModelNotFound: 404,
    CircuitNotFound: 404,
    RequestNotFound: 404,
    MethodNotAllowed: 405,
    RequestTimeout: 408,
    AliasInUse: 409,
    WorkerIdInUse: 409,
    OlderIncarnation: 409,
    IllegalTransition: 409,
    RequestCancelled: 410,
    BodyTooLarge: 413,
    UnsupportedMediaType: 415,
    Misdirected: 421,
    InvalidField: 422,
    TooManyRequests: 429,
    QueueFull: 429,
    HeaderTooLarge: 431,
    UnexpectedError: 500,
    WorkerLost: 502,
    QueueTimeout: 503,
    NoReadyWorker: 503,
    BufferFull: 503,
    TooManyConnections: 503,
    ShuttingDown: 503,
    NoPortLeft: 503,
    CircuitOpen: 503,
    ControlUnavailable: 503,
    DoesNotFit: 507,
}


def status_of(error: RbeeError) -> int:
    """The status of *error*; what has no row is our own fault, a 500."""
    return next((STATUS[cls] for cls in type(error).__mro__ if cls in STATUS), 500)
