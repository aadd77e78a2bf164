"""A worker's slot, held by one request: given back exactly once, however the request ends."""

from rbee.core.routing import Route, RouteTable


class Lease:
    """*slot*: whether the request takes one of the engine's; without, it only counts as under way."""

    __slots__ = ("_held", "_routes", "_slot", "activity", "worker_id")

    def __init__(self, routes: RouteTable, route: Route, *, slot: bool = True) -> None:
        # The object itself: a route may be published anew while the request runs, and goes on with the same one.
        self.activity = routes.acquire(route.worker_id, slot=slot).activity
        self._slot = slot
        self.worker_id = route.worker_id
        self._routes = routes
        self._held = True

    def release(self) -> None:
        if self._held:
            self._held = False
            self._routes.release(self.worker_id, slot=self._slot)
