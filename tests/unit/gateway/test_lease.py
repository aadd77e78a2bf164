from rbee.core.routing import Route, RouteTable
from rbee.gateway.lease import Lease


def test_lease_gives_its_slot_back_once():
    routes = RouteTable()
    routes.publish(Route("w", "m"))
    lease = Lease(routes, routes.routes["w"])
    assert routes.in_flight("w") == 1
    lease.release()
    lease.release()
    assert routes.in_flight("w") == 0


def test_worker_that_comes_back_is_not_credited_with_requests_of_its_last_life():
    routes = RouteTable()
    routes.publish(Route("w", "m"))
    first, second = Lease(routes, routes.routes["w"]), Lease(routes, routes.routes["w"])
    routes.withdraw("w")
    first.release()
    routes.publish(Route("w", "m"))
    assert routes.in_flight("w") == 1
    second.release()
    assert routes.in_flight("w") == 0
