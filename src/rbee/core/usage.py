"""What one request took: the value that the gateway hands to the usage sink."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """One finished inference request.

    ``status`` is the HTTP status that the client saw (499: it went away first, as nginx counts it). Times are
    seconds; None where the answer ended before there was one. Token counts are None where the engine did not
    tell them: unknown is never guessed.
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


UsageSink = Callable[[Usage], None]
