"""Any story of a model's line, its workers and its requests: who waits is who must, and the earliest goes first.

The real gateway's door, routes and requests on one side; on the other what the test itself knows of them.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rbee.core.auth import AuthPolicy
from rbee.core.routing import Route, RouteTable, Standing
from rbee.gateway.door import FrontDoor
from rbee.gateway.exchange import now
from rbee.gateway.head import parse_head
from rbee.gateway.inference import LOADING_DELAY, Inference, Phase
from rbee.gateway.options import GatewayOptions
from rbee.gateway.upstream import AnswerHead
from tests.unit.gateway.test_inference import FakeClient, FakeUpstream

HEADS = {
    slot: parse_head(b"POST /v1/messages%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % (b"" if slot else b"/count_tokens"))
    for slot in (True, False)
}
IDS = ["w-1", "w-2", "w-3"]
LIMIT = 6


class Pool:
    """Whoever is sent to a worker passes here."""

    def __init__(self, watch):
        self._watch = watch

    def ask(self, address, request, asker, *, fresh=False):
        self._watch(asker)
        return FakeUpstream(asker)

    def retain(self, ready, known): ...


class Queue(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self._usages = []
        self.routes = RouteTable()
        self.door = FrontDoor(
            GatewayOptions("", queue_limit=LIMIT, affinity=False),
            self.routes,
            AuthPolicy({}, b""),
            self._usages.append,
            "1",
        )
        self.door.adopting = False
        self.door.pool = Pool(self.nobody_is_overtaken)
        self.requests: list[Inference] = []
        self.clock = 0.0
        for worker_id in IDS[:2]:
            self.place(worker_id, Standing.READY, 2)

    @property
    def usages(self):
        self.door.log.settle()
        return self._usages

    def place(self, worker_id, standing, slots):
        alias = "chat" if worker_id != "w-3" else None
        self.routes.publish(Route(worker_id, "m", alias, standing, "h", 1, slots=slots))

    def living(self, *phases):
        return [request for request in self.requests if request._phase in phases]

    def candidates(self, request):
        """The workers that may get a waiting request now, by the test's own rule."""
        return [
            route
            for route in self.routes
            if request._name in route.names
            and route.standing is Standing.READY
            and route.worker_id not in request._shunned
        ]

    # what happens

    @rule(name=st.sampled_from([*IDS, "m", "m", "m", "chat"]), slot=st.sampled_from([True, True, True, False]))
    def ask(self, name, slot):
        waiting = len(self.living(Phase.WAITING))
        request = Inference(self.door, FakeClient(), HEADS[slot], f"r{len(self.requests)}")
        self.requests.append(request)
        request.start(b'{"model":"%b"}' % name.encode())
        refused = request.client.refused
        if refused is not None and refused.code == "queue_full":
            assert waiting >= LIMIT
            assert 1 <= refused.retry_after <= 60

    @rule(worker_id=st.sampled_from(IDS), standing=st.sampled_from(Standing), slots=st.integers(1, 3))
    def publish(self, worker_id, standing, slots):
        self.place(worker_id, standing, slots)

    @rule(worker_id=st.sampled_from(IDS))
    def withdraw(self, worker_id):
        self.routes.withdraw(worker_id)

    @precondition(lambda self: self.living(Phase.ASKED, Phase.ANSWERING))
    @rule(data=st.data(), how=st.sampled_from(["answer", "begin", "lost", "loading", "refused"]))
    def hear(self, data, how):
        request = data.draw(st.sampled_from(self.living(Phase.ASKED, Phase.ANSWERING)))
        begun = request._phase is Phase.ANSWERING
        if how == "lost":
            request.upstream.open = False
            request.lost("gone", stale=False)
        elif begun:
            request.answered(None, b"x", done=how == "answer")
        else:
            status = {"loading": 503, "refused": 401}.get(how, 200)
            request.answered(AnswerHead(status, [], None), b"x", done=how != "begin")

    @precondition(lambda self: self.living(Phase.WAITING, Phase.ASKED, Phase.ANSWERING))
    @rule(data=st.data())
    def leave(self, data):
        request = data.draw(st.sampled_from(self.living(Phase.WAITING, Phase.ASKED, Phase.ANSWERING)))
        request.client.gone = True
        request.drop(499)

    @rule(seconds=st.sampled_from([0.0, LOADING_DELAY]))
    def tick(self, seconds):
        self.clock += seconds
        for request in reversed(self.living(*Phase)):
            if request._phase is not Phase.CLOSED:
                request.tick(now() + self.clock)

    # what must hold

    def nobody_is_overtaken(self, asker):
        """It goes to a worker now, which has a slot for it and which no earlier one could have taken."""
        route = self.routes.routes[asker._account.worker_id]
        if asker._needs_slot:
            assert route.in_flight - route.slotless <= route.slots
            for other in self.living(Phase.WAITING):
                assert other is asker or route not in self.candidates(other) or asker._ticket < other._ticket

    @invariant()
    def nobody_waits_beside_a_free_slot(self):
        for request in self.living(Phase.WAITING):
            free = [route.worker_id for route in self.candidates(request) if route.has_free_slot]
            assert not free or not request._needs_slot, (request._name, free)

    @invariant()
    def no_worker_has_more_than_its_slots_unless_they_became_fewer(self):
        for route in self.routes:
            held = [r for r in self.living(Phase.ASKED, Phase.ANSWERING) if r._account.worker_id == route.worker_id]
            assert route.in_flight == len(held)
            assert route.slotless <= sum(not request._needs_slot for request in held)

    @invariant()
    def who_waits_stands_in_the_line_and_nobody_else(self):
        assert list(self.door.room) == sorted(self.living(Phase.WAITING), key=lambda request: request._ticket)
        assert sum(self.door.waiting().values()) == len(self.living(Phase.WAITING))

    @invariant()
    def who_has_ended_was_counted_once(self):
        ended = [request for request in self.requests if request._phase is Phase.CLOSED]
        assert len(self.usages) == len(ended)
        assert all(request.client.ends + request.client.gone == 1 for request in ended)


Queue.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestQueue = Queue.TestCase
