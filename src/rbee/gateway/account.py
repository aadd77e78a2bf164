"""What one inference request took: times as they pass, tokens as the answer tells them. Pure: times come in."""

from dataclasses import dataclass, field

from rbee.core.usage import Usage
from rbee.gateway import tally


@dataclass(slots=True)
class Account:
    """All times are seconds of one clock. ``model`` is empty until the request's body has been read."""

    request_id: str
    endpoint: str
    model: str = ""
    stream: bool = False
    worker_id: str | None = None
    received_at: float = 0.0
    since: float = 0.0
    """Since when the gateway itself has been at work on it."""
    waited: float = 0.0
    waits_since: float | None = None
    overhead: float | None = None
    """Seconds of the gateway's own work before the worker had the request: no queue, no worker in it."""
    first_byte_at: float | None = None
    sample: tally.Sample = field(default_factory=tally.Sample)

    def receives(self, now: float) -> None:
        """The request is complete."""
        self.received_at = self.since = now

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

    def usage(self, status: int, now: float) -> Usage:
        tokens = tally.count(self.sample)
        return Usage(
            request_id=self.request_id,
            model=self.model,
            worker_id=self.worker_id,
            endpoint=self.endpoint,
            status=status,
            stream=self.stream,
            queue_seconds=self.queue_seconds(now),
            first_byte_seconds=None if self.first_byte_at is None else self.first_byte_at - self.received_at,
            duration_seconds=now - self.received_at,
            overhead_seconds=self.overhead,
            prompt_tokens=tokens.prompt,
            generated_tokens=tokens.generated,
            cached_tokens=tokens.cached,
        )
