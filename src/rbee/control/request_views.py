"""The bodies of what is told of inference requests. Times in seconds."""

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from rbee.core.usage import RequestState, Underway, Usage


class RequestView(BaseModel):
    """One request. Null for what is not known (yet); ``duration_seconds`` of one under way: so far.

    ``status`` is what its client saw, 499 where the client went away first; ``error`` is the code of the error that
    ended it, in a stream too. ``key`` is the name of the key that asked, ``finish_reason`` as the engine spells it,
    ``overhead_seconds`` the gateway's own time before the worker had it.
    """

    request_id: str
    state: RequestState
    model: str
    worker_id: str | None
    endpoint: str
    stream: bool
    key: str | None
    started_at: datetime
    duration_seconds: float
    queue_seconds: float
    first_byte_seconds: float | None
    overhead_seconds: float | None = None
    status: int | None = None
    cancelled: bool = False
    error: str | None = None
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    cached_tokens: int | None = None
    tokens_per_second: float | None = None
    finish_reason: str | None = None


class RequestList(BaseModel):
    requests: list[RequestView]


class CancelAnswer(BaseModel):
    """Those that were ended, as they were."""

    cancelled: list[RequestView]


def underway_view(request: Underway) -> RequestView:
    return _view(request, request.state, request.age_seconds)


def ended_view(usage: Usage) -> RequestView:
    return _view(
        usage,
        RequestState.FINISHED,
        usage.duration_seconds,
        overhead_seconds=_known(usage.overhead_seconds),
        status=usage.status,
        cancelled=usage.cancelled,
        error=usage.error,
        prompt_tokens=usage.prompt_tokens,
        generated_tokens=usage.generated_tokens,
        cached_tokens=usage.cached_tokens,
        tokens_per_second=_known(usage.tokens_per_second),
        finish_reason=usage.finish_reason,
    )


def _view(request: Underway | Usage, state: RequestState, seconds: float, **more: Any) -> RequestView:
    """What is told of both kinds, and *more*."""
    return RequestView(
        request_id=request.request_id,
        state=state,
        model=request.model,
        worker_id=request.worker_id,
        endpoint=request.endpoint,
        stream=request.stream,
        key=request.key,
        started_at=_at(request.started_at),
        duration_seconds=_rounded(seconds),
        queue_seconds=_rounded(request.queue_seconds),
        first_byte_seconds=_known(request.first_byte_seconds),
        **more,
    )


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _rounded(seconds: float) -> float:
    return round(seconds, 6)


def _known(value: float | None) -> float | None:
    return None if value is None else _rounded(value)
