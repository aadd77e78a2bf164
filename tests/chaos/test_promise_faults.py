"""Each fault after a promise, once; the invariants of invariants.py are checked after each."""

import tests.chaos.promise_faults  # noqa: F401 - enters its faults into the list


def test_a_delete_that_was_answered_holds_over_the_death_of_the_hive(survives):
    survives("deleted, then the hive is killed")


def test_a_delete_by_force_that_was_answered_holds_over_the_death_of_the_hive(survives):
    survives("deleted by force, then the hive is killed")


def test_a_drain_that_was_begun_for_a_delete_ends_with_it_although_the_hive_is_dead(survives):
    survives("deleted, then the hive is killed during the drain")


def test_a_worker_that_is_not_listed_any_more_is_not_listed_by_the_next_hive(survives):
    survives("deleted and gone, then the hive is killed")


def test_a_worker_that_was_ended_by_force_is_not_listed_by_the_next_hive(survives):
    survives("deleted by force and gone, then the hive is killed")


def test_a_restart_that_was_answered_comes_to_its_end_although_the_hive_is_dead(survives):
    survives("restarted by hand, then the hive is killed")


def test_workers_that_ended_because_no_hive_was_there_are_all_started_and_no_circuit_opens(survives):
    survives("hive away for longer than orphan_timeout")


def test_a_second_signal_ends_the_hive_and_not_the_workers_that_it_leaves(survives):
    survives("two signals at once, on_shutdown = leave")


def test_a_worker_that_was_deleted_is_not_left_with_the_others(survives):
    survives("hive ended with on_shutdown = leave while a worker drains")
