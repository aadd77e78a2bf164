"""Each fault on the way to ready, once; the invariants of invariants.py are checked after each."""

import tests.chaos.load_faults  # noqa: F401 - enters its faults into the list


def test_an_engine_that_exits_during_its_load_leaves_nothing_and_is_started_again(survives):
    survives("engine exits during its load")


def test_a_load_that_makes_progress_is_given_its_time(survives):
    settled = survives("load slower than the load timeout, with progress")
    assert settled.judgement.lost == []


def test_no_worker_loads_for_ever(survives):
    survives("load that never becomes ready")


def test_a_load_that_nobody_wants_any_more_leaves_nothing(survives):
    survives("deleted while loading")


def test_a_worker_that_is_deleted_between_fork_and_first_call_leaves_nothing(survives):
    survives("deleted by force while starting")


def test_no_request_is_answered_by_a_stranger_who_came_to_the_port_first(survives):
    settled = survives("port stolen between choice and bind")
    assert settled.judgement.lost == []


def test_a_crash_loop_opens_the_circuit_which_says_why_and_lets_one_try_through(survives):
    survives("crash loop: exits at once")


def test_a_worker_that_crashes_slowly_is_given_up_too(survives):
    survives("slow crash loop")
