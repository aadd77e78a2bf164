"""What requests take: one that is under way, and one that has ended, as the gateway tells it to the usage sink."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class RequestState(StrEnum):
    WAITING = "waiting"
    """For a worker."""
    RUNNING = "running"
    """A worker has it."""
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Underway:
    """One inference request that has not ended. Times are seconds so far, ``started_at`` is seconds since the epoch."""

    request_id: str
    model: str
    worker_id: str | None
    endpoint: str
    stream: bool
    key: str | None
    started_at: float
    state: RequestState
    age_seconds: float
    queue_seconds: float
    first_byte_seconds: float | None


# A tuple: one is made for each request, and a frozen data class of so many fields takes three times as long to make.
class Usage(NamedTuple):
    """One finished inference request.

    ``status`` is the HTTP status that the client saw (499: it went away first, as nginx counts it). Times are
    seconds, ``started_at`` is seconds since the epoch; None where the answer ended before there was one. Token
    counts, their speed and the finish reason (as the engine spells it) are None where the engine did not tell
    them: unknown is never guessed.
    """

    request_id: str
    model: str
    """A known name: the worker's model reference; ``other`` where the asked name is unknown."""
    worker_id: str | None
    endpoint: str
    status: int
    stream: bool
    queue_seconds: float
    first_byte_seconds: float | None
    duration_seconds: float
    overhead_seconds: float | None
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    cached_tokens: int | None = None
    tokens_per_second: float | None = None
    finish_reason: str | None = None
    key: str | None = None
    """The name of the key that asked, never the key; None without one."""
    started_at: float = 0.0
    cancelled: bool = False
    """Ended by ``DELETE /v1/requests/{id}``."""
    error: str | None = None
    """Code of the error that we ended it with, in a stream that has its 200 too; None without one."""


UsageSink = Callable[[Usage], None]
