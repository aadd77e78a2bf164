"""Any story of publishing, withdrawing, asking and releasing: counts stay true across the lives of a worker."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rbee.core.routing import Route, RouteTable, Standing
from rbee.gateway.lease import Lease

IDS = st.sampled_from(["w-1", "w-2"])


class Routes(RuleBasedStateMachine):
    """The model beside it: which leases are held, and the most that was ever seen of each worker's activity."""

    def __init__(self):
        super().__init__()
        self.table = RouteTable()
        self.held: list[Lease] = []
        self.seen = {}

    @rule(worker_id=IDS, standing=st.sampled_from(Standing), port=st.integers(0, 2))
    def publish(self, worker_id, standing, port):
        self.table.publish(Route(worker_id, "m", standing=standing, host="h", port=port))

    @rule(worker_id=IDS)
    def withdraw(self, worker_id):
        self.table.withdraw(worker_id)
        self.seen.pop(worker_id, None)

    @precondition(lambda self: self.table.routes)
    @rule(data=st.data())
    def ask(self, data):
        worker_id = data.draw(st.sampled_from(sorted(self.table.routes)))
        self.held.append(Lease(self.table, self.table.routes[worker_id]))
        assert self.held[-1].activity is self.table.routes[worker_id].activity

    @precondition(lambda self: self.held)
    @rule(data=st.data(), twice=st.booleans(), size=st.integers(0, 5))
    def end(self, data, twice, size):
        lease = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        lease.activity.relayed_bytes += size
        for _ in range(1 + twice):
            lease.release()

    @invariant()
    def in_flight_is_who_holds_a_lease(self):
        for worker_id in ("w-1", "w-2"):
            count = sum(lease.worker_id == worker_id for lease in self.held)
            route = self.table.routes.get(worker_id)
            assert self.table.in_flight(worker_id) == (count if route else 0)
            assert (self.table._left_in_flight.get(worker_id, 0) if route is None else count) == count

    @invariant()
    def activity_never_shrinks_while_the_worker_stays(self):
        for worker_id, route in self.table.routes.items():
            now = (route.activity.requests, route.activity.relayed_bytes)
            before = self.seen.get(worker_id, (0, 0))
            assert now[0] >= before[0]
            assert now[1] >= before[1]
            self.seen[worker_id] = now


Routes.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestRoutes = Routes.TestCase
