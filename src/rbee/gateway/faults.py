"""What an error looks like on the wire: as a JSON body, and as an event at the end of a stream."""

import json
import math
from typing import Any, Final

from rbee.core.errors import MethodNotAllowed, RbeeError, RequestError, Unauthorized, status_of
from rbee.gateway.endpoints import Shape

_OPENAI_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

# https://docs.anthropic.com/en/api/errors
_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def body(error: RbeeError, shape: Shape, request_id: str) -> bytes:
    """The JSON body of *error*, as the clients of that API expect it."""
    return json.dumps(_value(error, shape, request_id)).encode()


def fields(error: RequestError) -> list[tuple[bytes, bytes]]:
    """The headers of an error's answer."""
    found = [(b"content-type", b"application/json")]
    if error.retry_after is not None:
        found.append((b"retry-after", b"%d" % math.ceil(error.retry_after)))
    if isinstance(error, Unauthorized):
        found.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, MethodNotAllowed):
        found.append((b"allow", str(error.details.get("allow", "")).encode("ascii")))
    return found


def event(error: RbeeError, shape: Shape, request_id: str) -> bytes:
    """*error* as one server-sent event, for an answer whose status has been sent already.

    It starts with an empty line, since the stream before it may have stopped inside an event.
    """
    return event_of(body(error, shape, request_id), shape)


def event_of(error_body: bytes, shape: Shape) -> bytes:
    """The same for the *error_body* (JSON on one line) of an engine."""
    name = b"event: error\n" if shape is Shape.ANTHROPIC else b""
    return b"\n\n" + name + b"data: " + error_body + b"\n\n"


def foreign_event(status: int, answer: bytes, shape: Shape) -> bytes | None:
    """What an engine answered instead of a stream, as an error event; None when it holds no error to pass on."""
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    if status < 400 or not isinstance(value, dict) or "error" not in value:
        return None
    return event_of(json.dumps(value).encode(), shape)


def _value(error: RbeeError, shape: Shape, request_id: str) -> dict[str, Any]:
    status = status_of(error)
    value = error.body(request_id)
    if shape is Shape.PLAIN:
        return value
    if shape is Shape.ANTHROPIC:
        kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}
    kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    value["error"] |= {"type": kind, "param": error.details.get("field")}
    return value
