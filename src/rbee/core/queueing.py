"""Who waits for a worker, who goes next, and who is refused. Pure: it holds requests, and no clock.

Each model has one line, first come first served by the time of arrival: a request that comes back (its worker was
lost, or still loading) takes its old place. Who cannot be served by the worker that is free is passed over.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from rbee.core.errors import QueueFull
from rbee.core.routing import NOBODY, Route, plain_name

T = TypeVar("T")

RETRY_AFTER: Final = 5.0
"""Seconds after which there may be a place, or a worker, where nothing was measured: models load for that long."""

MAX_RETRY_AFTER: Final = 60.0
"""Seconds: a client that is told more gives up."""

WEIGHT: Final = 1 / 8
"""Of the newest service time in the mean of a model's: as TCP smooths its round trips (RFC 6298 section 2)."""


@dataclass(slots=True)
class _Place(Generic[T]):
    model: str
    name: str
    shunned: frozenset[str]
    request: T


class WaitingRoom(Generic[T]):
    """At most ``limit`` requests a model; ``ticket`` numbers are handed out in order of arrival.

    ``slots_of`` tells how many requests the ready workers of a model take at once. Within a line those who ask for
    the same name, and shun the same workers, stand together: the first who may go to a worker is among few heads.
    """

    def __init__(self, limit: int, slots_of: Callable[[str], int]) -> None:
        self._limit = limit
        self._slots_of = slots_of
        self._places: dict[int, _Place[T]] = {}
        self._lines: dict[str, dict[frozenset[str], list[int]]] = {}
        self._depths: dict[str, int] = {}
        self._tickets = 0
        self._service_seconds: dict[str, float] = {}

    def ticket(self) -> int:
        self._tickets += 1
        return self._tickets

    def join(
        self,
        model: str,
        name: str,
        ticket: int,
        request: T,
        *,
        shunned: frozenset[str] = NOBODY,
        admitted: bool = False,
    ) -> None:
        """Stand in the line of *model* for the workers that *name* means, all but the *shunned* ones.

        Who stands in a line already moves. Raises QueueFull, except for one who was *admitted* before.
        """
        place = self._places.get(ticket)
        if place is not None:
            if (place.model, place.shunned) == (model, shunned):
                return
            self.leave(ticket)
        elif not admitted and self._depths.get(model, 0) >= self._limit:
            raise self._full(model)
        name = plain_name(name)
        self._places[ticket] = _Place(model, name, shunned, request)
        self._depths[model] = self._depths.get(model, 0) + 1
        insort(self._lines.setdefault(name, {}).setdefault(shunned, []), ticket)

    def _full(self, model: str) -> QueueFull:
        # With a limit of 0 the line is full without anybody in it.
        waiting = self._depths.get(model, 0)
        already = "1 request waits" if waiting == 1 else f"{waiting} requests wait"
        message = f"{already} for '{model}' already, and no more may (gateway.queue_limit: {self._limit}). Try later."
        return QueueFull(message, retry_after=self.expected_wait(model))

    def leave(self, ticket: int) -> None:
        """Stand in the line no more; who does not stand in one may leave, too."""
        place = self._places.pop(ticket, None)
        if place is None:
            return
        lines = self._lines[place.name]
        line = lines[place.shunned]
        del line[bisect_left(line, ticket)]
        if not line:
            del lines[place.shunned]
            if not lines:
                del self._lines[place.name]
        self._depths[place.model] -= 1
        if not self._depths[place.model]:
            del self._depths[place.model]

    def first_for(self, route: Route) -> T | None:
        """Who goes next to this worker: the earliest of those who may."""
        first: int | None = None
        for name in route.names:
            for shunned, line in self._lines.get(name, {}).items():
                if route.worker_id not in shunned and (first is None or line[0] < first):
                    first = line[0]
        return None if first is None else self._places[first].request

    def __bool__(self) -> bool:
        return bool(self._places)

    def __iter__(self) -> Iterator[T]:
        """All who wait, in order of arrival. They may leave, or change their line, meanwhile."""
        for ticket in sorted(self._places):
            place = self._places.get(ticket)
            if place is not None:
                yield place.request

    def depths(self) -> dict[str, int]:
        return dict(self._depths)

    def served(self, model: str, seconds: float) -> None:
        """A request for *model* held its slot for so many seconds."""
        mean = self._service_seconds.get(model, seconds)
        self._service_seconds[model] = mean + WEIGHT * (seconds - mean)

    def expected_wait(self, model: str) -> float:
        """Whole seconds after which one who came now would be served: what ``Retry-After`` tells."""
        return retry_after(self._depths.get(model, 0), self._service_seconds.get(model), self._slots_of(model))


def retry_after(ahead: int, service_seconds: float | None, slots: int) -> float:
    """Seconds until *ahead* requests have left, if each holds one of the *slots* for *service_seconds* (None: unknown).

    ``RETRY_AFTER`` where nothing was measured or nobody serves; else between 1 and ``MAX_RETRY_AFTER``.
    """
    if service_seconds is None or slots <= 0:
        return RETRY_AFTER
    return float(min(max(math.ceil(ahead * service_seconds / slots), 1), MAX_RETRY_AFTER))
