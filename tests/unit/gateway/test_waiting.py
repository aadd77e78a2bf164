import pytest

from rbee.core.errors import QueueFull
from rbee.core.routing import Route, RouteTable
from rbee.gateway.lease import Lease
from rbee.gateway.waiting import WaitingRoom


def test_each_model_has_a_line_in_order_of_arrival():
    room: WaitingRoom[str] = WaitingRoom(8)
    for model, name in [("a", "a1"), ("b", "b1"), ("a", "a2"), ("a", "a3")]:
        room.join(model, room.ticket(), name)
    assert [name for name in room if name.startswith("a")] == ["a1", "a2", "a3"]
    assert room.depths() == {"a": 3, "b": 1}


def test_full_line_refuses_and_says_when_to_come_back():
    room: WaitingRoom[str] = WaitingRoom(1)
    room.join("a", room.ticket(), "first")
    with pytest.raises(QueueFull) as caught:
        room.join("a", room.ticket(), "second")
    assert caught.value.retry_after
    room.join("b", room.ticket(), "other model")
    assert room.depths() == {"a": 1, "b": 1}


def test_who_comes_back_takes_the_old_place_even_in_a_full_line():
    room: WaitingRoom[str] = WaitingRoom(1)
    early, late = room.ticket(), room.ticket()
    room.join("a", late, "late")
    room.join("a", early, "early", admitted=True)
    assert list(room) == ["early", "late"]


def test_who_leaves_while_all_are_called_is_not_called():
    room: WaitingRoom[int] = WaitingRoom(8)
    for _ in range(3):
        ticket = room.ticket()
        room.join("a", ticket, ticket)
    called = []
    for ticket in room:
        called.append(ticket)
        room.leave("a", ticket + 1)
    assert called == [1, 3]


def test_empty_line_is_forgotten():
    room: WaitingRoom[str] = WaitingRoom(8)
    ticket = room.ticket()
    room.join("a", ticket, "x")
    room.leave("a", ticket)
    room.leave("a", ticket)
    assert not room
    assert room.depths() == {}


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
