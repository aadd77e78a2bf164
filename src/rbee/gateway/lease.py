"""A worker's slot, held by one request: given back exactly once, however the request ends."""

from rbee.core.routing import Route, RouteTable


class Lease:
    __slots__ = ("_held", "_routes", "worker_id")

    def __init__(self, routes: RouteTable, route: Route) -> None:
        routes.acquire(route.worker_id)
        self.worker_id = route.worker_id
        self._routes = routes
        self._held = True

    def release(self) -> None:
        if self._held:
            self._held = False
            self._routes.release(self.worker_id)
