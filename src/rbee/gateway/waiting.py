"""Who waits for a model, who goes next, and who is refused. Pure: it holds requests, and no clock.

Each model has its own line, first come first served by the time of arrival: a request that comes back (its
worker was lost, or still loading) takes its old place.
"""

from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from rbee.core.errors import QueueFull

T = TypeVar("T")

RETRY_AFTER: Final = 5.0
"""Seconds after which there may be a place, or a worker: models load for that long."""


class WaitingRoom(Generic[T]):
    """At most ``limit`` requests a model; ``ticket`` numbers are handed out in order of arrival."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lines: dict[str, dict[int, T]] = {}
        self._tickets = 0

    def ticket(self) -> int:
        self._tickets += 1
        return self._tickets

    def join(self, model: str, ticket: int, request: T, *, admitted: bool = False) -> None:
        """Stand in the line. Raises QueueFull, except for one who was *admitted* before."""
        line = self._lines.setdefault(model, {})
        if len(line) >= self._limit and not admitted:
            raise QueueFull(
                f"{len(line)} requests wait for '{model}' already (gateway.queue_limit: {self._limit}). Try later.",
                retry_after=RETRY_AFTER,
            )
        line[ticket] = request

    def leave(self, model: str, ticket: int) -> None:
        """Stand in the line no more; who does not stand in it may leave, too."""
        line = self._lines.get(model, {})
        line.pop(ticket, None)
        if not line:
            self._lines.pop(model, None)

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __iter__(self) -> Iterator[T]:
        """All who wait, in order of arrival. They may leave, or change their line, meanwhile."""
        places = [(ticket, model) for model, line in self._lines.items() for ticket in line]
        for ticket, model in sorted(places):
            line = self._lines.get(model, {})
            if ticket in line:
                yield line[ticket]

    def depths(self) -> dict[str, int]:
        return {model: len(line) for model, line in self._lines.items()}
