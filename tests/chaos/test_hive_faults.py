"""Each fault of the hive itself, once; the invariants of invariants.py are checked after each."""

import tests.chaos.hive_faults  # noqa: F401 - enters its faults into the list


def test_a_killed_hive_leaves_its_workers_to_the_next_one_with_their_models_in_memory(survives):
    survives("hive killed")


def test_no_process_is_unknown_after_a_hive_that_was_killed_during_a_spawn(survives):
    survives("hive killed during a spawn")


def test_a_worker_that_died_while_no_hive_ran_is_replaced(survives):
    survives("worker killed while no hive runs")


def test_time_in_which_the_hive_was_stopped_counts_for_no_worker(survives):
    settled = survives("hive stopped for one and a half times stale_after")
    assert settled.judgement.lost == []


def test_a_hive_that_is_ended_while_it_starts_leaves_nothing_or_touches_nothing(survives):
    survives("SIGTERM to the hive while it starts")


def test_a_hive_that_is_ended_during_a_drain_lets_the_request_end_and_leaves_nothing(survives):
    survives("SIGTERM to the hive during a drain")


def test_workers_that_were_left_on_purpose_are_kept_by_the_next_hive(survives):
    survives("hive ended with on_shutdown = leave")


def test_a_hive_without_its_database_takes_back_the_workers_that_announce_themselves(survives):
    survives("database damaged while no hive runs")


def test_of_fifty_spawns_and_deletes_at_once_none_is_forgotten(survives):
    survives("fifty spawns and deletes at once")
