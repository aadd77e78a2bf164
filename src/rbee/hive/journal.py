"""The last transitions, and who listens to them."""

from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import anyio

from rbee.core.exits import Exit
from rbee.core.worker import WorkerState

CAPACITY: Final = 10_000


@dataclass(frozen=True, slots=True)
class Transition:
    """One event that a worker took. ``after`` may equal ``before``; ``exit`` is set where a process ended with it.

    ``seconds`` is how long the worker had been in ``before``; ``was_ready``, whether this incarnation ever was.
    """

    number: int
    at: datetime
    worker_id: str
    model_ref: str
    incarnation: int
    event: str
    before: WorkerState
    after: WorkerState
    message: str
    seconds: float
    was_ready: bool = False
    exit: Exit | None = None


class Journal:
    """Kept in memory: what happened before this hive started is in its log."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._entries: deque[Transition] = deque(maxlen=capacity)
        self._listeners: list[Callable[[Transition], None]] = []
        self._grew = anyio.Event()
        self._closed = False
        self.last_number = 0

    def subscribe(self, listener: Callable[[Transition], None]) -> None:
        """Call *listener* with each new entry, synchronously."""
        self._listeners.append(listener)

    def append(self, entry: Transition) -> None:
        self._entries.append(entry)
        self.last_number = entry.number
        for listener in self._listeners:
            listener(entry)
        self._wake()

    def close(self) -> None:
        """End every stream of ``follow``."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        self._grew.set()
        self._grew = anyio.Event()

    def since(self, number: int) -> list[Transition]:
        """The kept entries after *number*, oldest first."""
        return [entry for entry in self._entries if entry.number > number]

    async def follow(self, number: int) -> AsyncIterator[Transition]:
        """Entries after *number*, then each new one, until the journal is closed.

        A number that is yet to come is one of an earlier hive: its reader has seen nothing of this one.
        """
        if number > self.last_number:
            number = 0
        while not self._closed:
            grew = self._grew
            for entry in self.since(number):
                number = entry.number
                yield entry
            if number >= self.last_number and not self._closed:
                await grew.wait()
