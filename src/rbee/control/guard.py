"""What is decided before a request's body is read: strangers and oversized bodies cost nothing."""

import uuid
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from rbee.core import auth
from rbee.core.addresses import MAX_CONTROL_BODY_BYTES
from rbee.core.errors import BodyTooLarge, RequestError, Unauthorized, status_of

PUBLIC: Final = frozenset({"/metrics"})
"""Paths that anybody may ask for here (metrics asks for more itself, where ``auth.metrics_auth`` is set)."""
CALLER: Final = "rbee.caller"
"""Where a request's scope holds the principal, for the routes."""


class Guard:
    """ASGI middleware: 401 without a key where keys are required, 413 for a body that no call needs."""

    def __init__(self, app: ASGIApp, policy: auth.AuthPolicy) -> None:
        self._app = app
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            try:
                self._check(scope, headers)
            except RequestError as error:
                await error_response(error, headers)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        key = auth.presented_key(headers.get("authorization"), headers.get("x-api-key"))
        principal = scope[CALLER] = auth.resolve(self._policy, key)
        if scope["path"] not in PUBLIC:
            auth.require_known(principal)
        length = headers.get("content-length", "0")
        # The gateway holds each body whole and says how long it is; our own workers do too.
        if "transfer-encoding" in headers or not length.isdecimal() or int(length) > MAX_CONTROL_BODY_BYTES:
            raise BodyTooLarge(f"The body of a control request may have at most {MAX_CONTROL_BODY_BYTES} bytes.")


def error_response(error: RequestError, headers: Headers, extra: dict[str, str] | None = None) -> JSONResponse:
    """The one shape of an error, with the headers that belong to it."""
    fields = dict(extra or {})
    if isinstance(error, Unauthorized):
        fields["www-authenticate"] = "Bearer"
    if error.retry_after is not None:
        fields["retry-after"] = str(max(1, round(error.retry_after)))
    request_id = headers.get("x-request-id") or uuid.uuid4().hex
    return JSONResponse(error.body(request_id), status_of(error), fields)
