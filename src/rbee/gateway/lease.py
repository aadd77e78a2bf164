"""A worker's slot, held by one request: given back exactly once, however the request ends."""

from rbee.core.routing import Route, RouteTable


class Lease:
    __slots__ = ("_held", "_routes", "activity", "worker_id")

    def __init__(self, routes: RouteTable, route: Route) -> None:
        # The object itself: a route may be published anew while the request runs, and goes on with the same one.
        self.activity = routes.acquire(route.worker_id).activity
        self.worker_id = route.worker_id
        self._routes = routes
        self._held = True

    def release(self) -> None:
        if self._held:
            self._held = False
            self._routes.release(self.worker_id)
