"""The application: routers, and the one place where errors become answers."""

import anyio.to_thread
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from rbee import __version__
from rbee.control import callbacks, circuits, requests, resources, system, workers
from rbee.control.context import Context, context_of
from rbee.control.guard import Guard, error_response
from rbee.core import model_ref
from rbee.core.errors import (
    InvalidField,
    MalformedRequest,
    MethodNotAllowed,
    RequestError,
    RouteNotFound,
    UnexpectedError,
)

log = structlog.get_logger(__name__)


def build(context: Context) -> FastAPI:
    app = FastAPI(title="rbee", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.context = context
    # Callbacks first: /v1/workers/ready must not be taken for a worker's id.
    for module in (callbacks, workers, circuits, resources, requests, system):
        app.include_router(module.router)
    app.add_api_route("/openapi.json", _openapi, include_in_schema=False)
    app.add_exception_handler(RequestError, _answer_error)
    app.add_middleware(Guard, policy=context.policy)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_unexpected)
    return app


async def _openapi(request: Request) -> JSONResponse:
    """The schema. Built when it is first asked for, in a thread: it takes 0.4 s, and beats must not wait for that."""
    return JSONResponse(await anyio.to_thread.run_sync(request.app.openapi))


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
    return error_response(error, request.headers)


async def _answer_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    first = problems[0]
    if first["type"] == "json_invalid":
        message = f"The body is not JSON: {first['ctx']['error']} at position {first['loc'][-1]}."
        return await _answer_error(request, MalformedRequest(message))
    # A bad reference is told before a bad field (DESIGN section 5).
    reference = error.body.get("model_ref") if isinstance(error.body, dict) else None
    if isinstance(reference, str) and reference not in context_of(request).defaults.models:
        try:
            model_ref.parse(reference)
        except RequestError as bad_reference:
            return await _answer_error(request, bad_reference)
    fields = [{"field": _path(one["loc"]), "problem": one["msg"]} for one in problems[:20]]
    listed = "; ".join(f"{field['field']}: {field['problem']}" for field in fields[:5])
    return await _answer_error(request, InvalidField(f"The request is not valid: {listed}.", fields=fields))


async def _answer_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        refused = MethodNotAllowed(f"{request.method} is not possible on {path}; allowed: {allowed}.")
        return error_response(refused, request.headers, {"allow": allowed})
    if error.status_code == 404:
        return await _answer_error(
            request, RouteNotFound(f"There is nothing at {path}; /openapi.json lists what there is.")
        )
    return await _answer_error(request, MalformedRequest(f"The body cannot be read: {error.detail}"))


async def _answer_unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("request_failed", path=request.url.path[:200], exc_info=error)
    return error_response(
        UnexpectedError("An error inside rbee; its log says more. Please report it."), request.headers
    )


def _path(location: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in location[1:]) or str(location[0])
