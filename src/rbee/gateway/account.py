"""What one inference request took: times as they pass, tokens as the answer tells them. Pure: times come in."""

from dataclasses import dataclass, field
from typing import Final

from rbee.core.usage import RequestState, Underway, Usage
from rbee.gateway import tally

FEWEST_TOKENS: Final = 2
"""The first token comes with the prompt: llama.cpp gives 30 us for an answer of one."""

SHORTEST_STREAM: Final = 0.001
"""Seconds; what came within less came at once, and tells nothing of the speed at which it was made."""


@dataclass(slots=True)
class Account:
    """All times are seconds of one clock, but for ``started_at``, which is seconds since the epoch, for people.

    ``model`` is empty until the request's body has been read; ``key`` is the name of the key that asked.
    """

    request_id: str
    endpoint: str
    model: str = ""
    stream: bool = False
    key: str | None = None
    worker_id: str | None = None
    received_at: float = 0.0
    since: float = 0.0
    """Since when the gateway itself has been at work on it."""
    waited: float = 0.0
    waits_since: float | None = None
    overhead: float | None = None
    """Seconds of the gateway's own work before the worker had the request: no queue, no worker in it."""
    first_byte_at: float | None = None
    started_at: float = 0.0
    complete: bool = False
    """Whether the worker has sent all of its answer."""
    cancelled: bool = False
    error: str | None = None
    """Code of the error that ended it."""
    sample: tally.Sample = field(default_factory=tally.Sample)

    def receives(self, now: float, started_at: float = 0.0) -> None:
        """The request is complete."""
        self.received_at = self.since = now
        self.started_at = started_at

    def waits(self, now: float) -> None:
        """It stands in the queue."""
        if self.waits_since is None:
            self.waits_since = now
            self._worked(now)

    def asks(self, worker_id: str, now: float) -> None:
        """It leaves for a worker."""
        if self.waits_since is not None:
            self.waited += now - self.waits_since
            self.waits_since = None
        else:
            self._worked(now)
        self.worker_id = worker_id

    def loses(self, now: float) -> None:
        """The worker did not answer it, or not to the end: it is ours again."""
        self.since = now
        self.first_byte_at = None
        self.sample = tally.Sample()

    def _worked(self, now: float) -> None:
        self.overhead = (self.overhead or 0.0) + now - self.since

    def adds(self, data: bytes, now: float) -> None:
        """More bytes of the answer's body."""
        if self.first_byte_at is None:
            self.first_byte_at = now
        self.sample.add(data)

    def queue_seconds(self, now: float) -> float:
        return self.waited if self.waits_since is None else self.waited + now - self.waits_since

    def underway(self, state: RequestState, now: float) -> Underway:
        return Underway(
            request_id=self.request_id,
            model=self.model,
            # Of one that is back in the queue, the worker that failed it has nothing any more.
            worker_id=None if state is RequestState.WAITING else self.worker_id,
            endpoint=self.endpoint,
            stream=self.stream,
            key=self.key,
            started_at=self.started_at,
            state=state,
            age_seconds=now - self.received_at,
            queue_seconds=self.queue_seconds(now),
            first_byte_seconds=self._first_byte_seconds(),
        )

    def usage(self, status: int, now: float) -> Usage:
        told = tally.read(self.sample, complete=self.complete)
        # By place, not by name: this is done for each request, and names cost as much again.
        return Usage(
            self.request_id,
            self.model,
            self.worker_id,
            self.endpoint,
            status,
            self.stream,
            self.queue_seconds(now),
            self._first_byte_seconds(),
            now - self.received_at,
            self.overhead,
            told.prompt,
            told.generated,
            told.cached,
            self._speed(told, now),
            told.finish,
            self.key,
            self.started_at,
            self.cancelled,
            self.error,
        )

    def _first_byte_seconds(self) -> float | None:
        return None if self.first_byte_at is None else self.first_byte_at - self.received_at

    def _speed(self, told: tally.Told, now: float) -> float | None:
        """Tokens a second: by the engine's own time, else by that in which a stream came; None where neither is."""
        if told.generated is None or told.generated < FEWEST_TOKENS:
            return None
        if told.generating_seconds:
            return told.generated / told.generating_seconds
        if self.stream and self.first_byte_at is not None and now - self.first_byte_at >= SHORTEST_STREAM:
            return told.generated / (now - self.first_byte_at)
        return None
