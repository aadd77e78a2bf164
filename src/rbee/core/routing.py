"""Which ready worker serves a request: the narrow door between the hive, which publishes, and the gateway, which asks.

Mutable, but pure: no I/O, no clock. It is used from one thread, the event loop's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from rbee.core.model_ref import BUILT_IN_ALIASES


class Standing(StrEnum):
    """What a request for a worker may expect of it."""

    READY = "ready"
    COMING = "coming"
    """Not ready yet (starting, loading, waiting to restart): a request waits for it."""
    OUT = "out"
    """Leaving or failed: a request does not wait for it."""


NOBODY: Final[frozenset[str]] = frozenset()
_BUILT_IN: Final = {reference: name for name, reference in BUILT_IN_ALIASES.items()}


@dataclass(slots=True)
class Activity:
    """What passed through the gateway for one worker so far; the gateway alone writes it, and it only grows."""

    requests: int = 0
    relayed_bytes: int = 0


@dataclass(slots=True)
class Route:
    """One worker as the gateway sees it. The hive writes all but ``in_flight``, ``slotless`` and ``activity``.

    Those are the gateway's. ``slotless`` counts the requests in flight that take none of the engine's ``slots``.
    ``served``: the names that its engine knows its model by, the preferred one first; empty: any name will do.
    ``folds``: its engine does not notice a client that leaves before its answer, unless it is asked for a stream.
    """

    worker_id: str
    model_ref: str
    alias: str | None = None
    standing: Standing = Standing.COMING
    host: str = ""
    port: int = 0
    key: str = ""
    slots: int = 1
    message: str = ""
    served: tuple[str, ...] = ()
    folds: bool = False
    in_flight: int = 0
    slotless: int = 0
    activity: Activity = field(default_factory=Activity)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name under which it can be asked for: id, reference, alias."""
        return tuple(name for name in (self.worker_id, self.model_ref, self.alias) if name)

    @property
    def short_name(self) -> str:
        """The name that is told to people: its alias, else the built-in name of its model, else the reference."""
        return self.alias or _BUILT_IN.get(self.model_ref, self.model_ref)

    @property
    def load(self) -> float:
        return self.in_flight / self.slots

    @property
    def has_free_slot(self) -> bool:
        return self.in_flight - self.slotless < self.slots


def plain_name(name: str) -> str:
    """*name*, or what it stands for where it is a built-in one."""
    return BUILT_IN_ALIASES.get(name, name)


_ORDER: Final = ("worker_id", "model_ref", "alias")


@dataclass(slots=True)
class RouteTable:
    """All workers by id. Listeners run synchronously, after the change that they are told of."""

    routes: dict[str, Route] = field(default_factory=dict)
    _listeners: list[Callable[[], None]] = field(default_factory=list)
    _release_listeners: list[Callable[[str], None]] = field(default_factory=list)
    _left_in_flight: dict[str, int] = field(default_factory=dict)
    _found: dict[str, list[Route]] = field(default_factory=dict)
    """What names mean, looked up once after each change; those that mean nothing are not kept, others may send any."""

    def __iter__(self) -> Iterator[Route]:
        return iter(self.routes.values())

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call *listener* after each change of what is known of a worker; not where only a request has ended."""
        self._listeners.append(listener)

    def subscribe_releases(self, listener: Callable[[str], None]) -> None:
        """Call *listener* with a worker's id where it has a request less, or is withdrawn with all that it has."""
        self._release_listeners.append(listener)

    def publish(self, route: Route) -> None:
        """Add a worker, or replace what is known of it; requests in flight go on counting."""
        known = self.routes.get(route.worker_id)
        route.in_flight = known.in_flight if known is not None else self._left_in_flight.pop(route.worker_id, 0)
        if known is not None:
            route.slotless = known.slotless
            route.activity = known.activity
        self.routes[route.worker_id] = route
        self.changed()

    def withdraw(self, worker_id: str) -> None:
        route = self.routes.pop(worker_id, None)
        if route is not None:
            self._found.clear()
            if route.in_flight:
                # They end after it: their release must not count against a worker that comes back by this id.
                self._left_in_flight[worker_id] = route.in_flight
            self._released(worker_id)
            self.changed()

    def changed(self) -> None:
        self._found.clear()
        for listener in self._listeners:
            listener()

    def _released(self, worker_id: str) -> None:
        for listener in self._release_listeners:
            listener(worker_id)

    def candidates(self, name: str) -> list[Route]:
        """The workers that *name* means: a worker id, else a model reference, else an alias; none: unknown.

        The list belongs to the table.
        """
        known = self._found.get(name)
        if known is not None:
            return known
        plain = plain_name(name)
        for attribute in _ORDER:
            found = [route for route in self.routes.values() if getattr(route, attribute) == plain]
            if found:
                self._found[name] = found
                return found
        return []

    def acquire(self, worker_id: str, *, slot: bool = True) -> Route:
        """Count one more request on a worker; *slot*: it takes one. Raises KeyError for a worker that is not there."""
        route = self.routes[worker_id]
        route.in_flight += 1
        route.slotless += not slot
        route.activity.requests += 1
        return route

    def release(self, worker_id: str, *, slot: bool = True) -> None:
        """Count one request less; the worker may be gone already."""
        route = self.routes.get(worker_id)
        if route is not None:
            route.in_flight -= 1
            if not slot and route.slotless:
                # None where it is of the worker's last life: those that were left count as if all took slots.
                route.slotless -= 1
            self._released(worker_id)
        elif self._left_in_flight.get(worker_id, 0) > 1:
            self._left_in_flight[worker_id] -= 1
        else:
            self._left_in_flight.pop(worker_id, None)

    def in_flight(self, worker_id: str) -> int:
        route = self.routes.get(worker_id)
        return route.in_flight if route is not None else 0

    def slots_of(self, model_ref: str) -> int:
        """How many requests the ready workers of a model take at once."""
        return sum(
            route.slots
            for route in self.routes.values()
            if route.model_ref == model_ref and route.standing is Standing.READY
        )


def takers(routes: list[Route], *, slot: bool = True, shunned: frozenset[str] = NOBODY) -> list[Route]:
    """The ready ones that take a request now: those with a free slot, or all where it needs no *slot*.

    The *shunned* are none of them.
    """
    return [
        route
        for route in routes
        if route.standing is Standing.READY
        and (route.in_flight - route.slotless < route.slots or not slot)
        and route.worker_id not in shunned
    ]


def least_loaded(routes: list[Route], excluding: str | None = None) -> Route | None:
    """The one of *routes* with the smallest share of its slots in use; None when there is none.

    *excluding* names a worker that has just failed this request: it is asked again only if no other is there.
    """
    others = [route for route in routes if route.worker_id != excluding] if excluding is not None else routes
    return min(others or routes, key=lambda route: (route.load, route.in_flight), default=None)
