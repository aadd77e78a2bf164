"""Each fault of one worker, once; the invariants of invariants.py are checked after each."""

import tests.chaos.worker_faults  # noqa: F401 - enters its faults into the list


def test_no_engine_outlives_a_killed_keeper_and_the_worker_is_replaced(survives):
    survives("keeper killed")


def test_no_keeper_stays_without_its_engine_and_the_worker_is_replaced(survives):
    survives("engine killed")


def test_a_worker_of_which_nothing_is_left_is_replaced(survives):
    survives("keeper and engine killed")


def test_a_worker_that_is_silent_for_less_than_stale_after_is_kept(survives):
    settled = survives("worker stopped briefly")
    assert settled.judgement.lost == []


def test_a_stopped_worker_is_found_stale_and_leaves_no_process(survives):
    survives("worker stopped for good")


def test_a_worker_whose_loop_stopped_is_ended_although_its_health_says_ok(survives):
    survives("engine hangs")


def test_no_grandchild_in_the_group_of_a_killed_engine_keeps_the_port(survives):
    survives("engine killed, its child in the group holds the port")


def test_no_grandchild_with_a_session_of_its_own_survives_a_killed_engine(survives):
    survives("engine killed, its child in a session of its own holds the port")


def test_no_grandchild_in_the_group_survives_a_keeper_that_was_killed_first(survives):
    survives("keeper killed first, the engine's child in the group holds the port")


def test_no_grandchild_with_a_session_of_its_own_survives_a_keeper_that_was_killed_first(survives):
    survives("keeper killed first, the engine's child in a session of its own holds the port")


def test_a_slot_is_given_back_when_the_client_of_a_stream_is_gone(survives):
    settled = survives("client gone in the middle of a stream")
    assert settled.judgement.lost == []


def test_a_request_in_flight_ends_before_the_worker_that_is_deleted(survives):
    settled = survives("deleted while serving")
    assert settled.judgement.lost == []


def test_a_request_on_a_worker_that_is_deleted_by_force_ends_with_a_clear_error(survives):
    survives("deleted by force while serving")
