"""While the hive does not know all its workers, nobody is told that a model is not here."""

import pytest

from rbee.core.auth import AuthPolicy
from rbee.core.errors import ModelNotFound, NoReadyWorker, QueueFull, QueueTimeout
from rbee.core.queueing import RETRY_AFTER
from rbee.core.routing import Route, RouteTable, Standing
from rbee.gateway.door import FrontDoor
from rbee.gateway.exchange import now
from rbee.gateway.head import parse_head
from rbee.gateway.inference import Inference
from rbee.gateway.options import GatewayOptions
from rbee.gateway.upstream import AnswerHead
from tests.unit.gateway.test_inference import FakeClient, FakePool

HEAD = parse_head(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n\r\n")


class ManyAskedPool(FakePool):
    """Remembers who was asked; here several requests run at once."""

    def ask(self, address, request, asker, *, fresh=False):
        self.asked.append(asker)


class Hall:
    """A door whose hive still adopts, and the requests that came to it."""

    def __init__(self, **options):
        self._usages = []
        self.routes = RouteTable()
        self.door = FrontDoor(GatewayOptions("", **options), self.routes, AuthPolicy({}, b""), self._usages.append, "1")
        self.pool = self.door.pool = ManyAskedPool()

    @property
    def usages(self):
        self.door.log.settle()
        return self._usages

    def ask(self, name="m") -> Inference:
        request = Inference(self.door, FakeClient(), HEAD, "id")
        request.start(b'{"model":"%b"}' % name.encode())
        return request

    def place(self, worker_id, model="m", standing=Standing.READY, alias=None, message="", slots=8):
        self.routes.publish(Route(worker_id, model, alias, standing, "h", 1, slots=slots, message=message))


def test_hive_adopts_from_its_start_on():
    assert Hall().door.adopting


def test_request_for_an_unknown_name_waits_and_goes_to_the_worker_that_is_found():
    hall = Hall()
    request = hall.ask()
    assert hall.door.waiting() == {"other": 1}
    hall.place("w1")
    assert hall.pool.asked == [request]
    assert hall.door.waiting() == {"m": 0}


def test_request_whose_worker_is_found_loading_moves_to_its_line_and_is_counted_as_that_model():
    hall = Hall()
    request = hall.ask("w1")
    hall.place("w1", standing=Standing.COMING)
    assert hall.door.waiting() == {"m": 1}
    hall.door.adopting = False
    assert request.client.refused is None
    request.drop(499)
    assert [usage.model for usage in hall.usages] == ["m"]
    assert not hall.door.room


def test_request_whose_worker_is_found_failed_gets_the_ordinary_refusal():
    hall = Hall()
    request = hall.ask()
    hall.place("w1", standing=Standing.OUT, message="the load failed")
    assert isinstance(request.client.refused, NoReadyWorker)
    assert "the load failed" in request.client.refused.message


def test_request_for_a_known_failed_worker_does_not_wait():
    hall = Hall()
    hall.place("w1", standing=Standing.OUT)
    assert isinstance(hall.ask().client.refused, NoReadyWorker)


def test_name_that_nobody_knows_when_adoption_is_over_gets_its_404():
    hall = Hall()
    requests = [hall.ask("m"), hall.ask("n")]
    hall.place("w9", "other-model")
    hall.door.adopting = False
    assert [type(request.client.refused) for request in requests] == [ModelNotFound, ModelNotFound]
    assert requests[0].client.refused.details["models"] == ["other-model"]
    assert [usage.model for usage in hall.usages] == ["other", "other"]
    assert isinstance(hall.ask("m").client.refused, ModelNotFound)


def test_worker_that_is_found_and_then_removed_is_not_told_as_unknown():
    hall = Hall()
    request = hall.ask()
    hall.place("w1", standing=Standing.COMING)
    hall.routes.withdraw("w1")
    assert request.client.refused is None
    hall.door.adopting = False
    assert isinstance(request.client.refused, NoReadyWorker)
    assert "removed" in request.client.refused.message
    assert request.client.refused.retry_after == RETRY_AFTER


def test_all_unknown_names_share_one_line_with_its_limit():
    hall = Hall(queue_limit=2)
    hall.ask("a")
    hall.ask("b")
    assert isinstance(hall.ask("c").client.refused, QueueFull)


def test_wait_for_adoption_has_the_limit_of_any_wait():
    hall = Hall(queue_timeout=60.0)
    request = hall.ask()
    request.tick(now() + 59.0)
    assert request.client.refused is None
    request.tick(now() + 61.0)
    assert isinstance(request.client.refused, QueueTimeout)


def test_hive_that_closes_while_it_adopts_refuses_who_waits():
    hall = Hall()
    request = hall.ask()
    hall.door.closing = True
    assert request.client.refused.code == "shutting_down"


@pytest.mark.parametrize("names", [["m", "chat", "m", "chat"], ["chat", "m", "chat", "m"]])
def test_those_who_waited_under_an_unknown_name_keep_their_turn_among_the_others(names):
    hall = Hall()
    hall.place("w1", standing=Standing.COMING)
    requests = [hall.ask(name) for name in names]
    assert hall.door.waiting() == {"m": 2, "other": 2}
    hall.place("w1", standing=Standing.COMING, alias="chat")
    assert hall.door.waiting() == {"m": 4}
    hall.place("w1", alias="chat")
    assert hall.pool.asked == requests


def test_turn_is_kept_where_the_name_becomes_known_with_the_ready_worker():
    hall = Hall()
    hall.place("w1", standing=Standing.COMING)
    requests = [hall.ask(name) for name in ("m", "chat", "m")]
    hall.place("w1", alias="chat")
    assert hall.pool.asked == requests


def test_slot_that_is_given_back_wakes_the_first_in_the_line_and_nobody_else():
    hall = Hall()
    hall.place("w1", slots=1)
    first, *waiting = [hall.ask() for _ in range(300)]
    woken = []
    for request in waiting:
        request.wake = lambda request=request: (woken.append(request), Inference.wake(request))
    first.drop(499)
    assert hall.pool.asked == [first, waiting[0]]
    assert woken == waiting[:1]


def test_those_who_come_back_go_on_in_their_order_whoever_is_looked_at_first():
    hall = Hall()
    hall.place("w1", slots=1)
    first, second = hall.ask(), hall.ask()
    for request in (first, second):
        request.answered(AnswerHead(503, [], 0), b"", done=True)
    assert hall.pool.asked == [first, second]
    later = now() + 1.0
    second.tick(later)
    first.tick(later)
    assert hall.pool.asked == [first, second, first]
    assert hall.door.waiting() == {"m": 1}
