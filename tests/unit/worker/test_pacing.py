from hypothesis import given
from hypothesis import strategies as st

from rbee.worker.pacing import BeatPlan, announce_delay, drain_at_most, kill_after


def failing_attempts(plan: BeatPlan, until: float) -> list[float]:
    """The times at which a plan whose every attempt fails at once makes them; nobody gives up."""
    now, times = 0.0, []
    while (now := max(now, plan.due(now))) < until:
        plan.attempt(now)
        plan.failed(now)
        times.append(now)
    return times


def test_beats_keep_to_their_grid_however_long_the_answers_take() -> None:
    plan = BeatPlan(0.0, 30.0, 300.0)
    for start in (0.0, 30.0, 60.0, 90.0):
        assert plan.due(start) == start
        plan.attempt(start)
        plan.succeeded(start + 4.9)


def test_a_failed_beat_is_tried_again_after_1_2_4_and_8_seconds_within_its_interval() -> None:
    assert failing_attempts(BeatPlan(0.0, 30.0, 300.0), 61.0) == [0, 1, 3, 7, 15, 30, 31, 33, 37, 45, 60]


def test_retries_never_delay_the_next_beat() -> None:
    assert failing_attempts(BeatPlan(0.0, 5.0, 300.0), 11.0) == [0, 1, 3, 5, 6, 8, 10]


def test_an_interval_below_a_second_needs_no_retries() -> None:
    assert failing_attempts(BeatPlan(0.0, 0.25, 300.0), 1.1) == [0, 0.25, 0.5, 0.75, 1.0]


def test_an_attempt_is_made_when_the_orphan_time_is_over() -> None:
    assert 17.0 in failing_attempts(BeatPlan(0.0, 30.0, 17.0), 20.0)


def test_only_an_attempt_that_began_after_the_orphan_time_makes_an_orphan() -> None:
    plan = BeatPlan(0.0, 30.0, 300.0)
    plan.attempt(0.0)
    plan.succeeded(1.0)
    assert not plan.orphaned(300.9)
    assert plan.orphaned(301.0)


def test_an_attempt_that_was_under_way_while_the_keeper_was_frozen_proves_nothing() -> None:
    plan = BeatPlan(0.0, 30.0, 300.0)
    plan.attempt(0.0)
    started = 30.0
    plan.attempt(started)  # frozen here for an hour; then the connection is found dead
    plan.failed(3630.0)
    assert not plan.orphaned(started)
    assert plan.due(3630.0) <= 3631.0


def test_beats_that_were_missed_are_not_made_up_for() -> None:
    plan = BeatPlan(0.0, 30.0, 300.0)
    plan.attempt(0.0)
    plan.succeeded(0.0)
    plan.attempt(125.0)
    plan.succeeded(125.0)
    assert plan.due(125.0) == 150.0


def test_a_new_orphan_time_counts_from_the_last_success() -> None:
    plan = BeatPlan(0.0, 30.0, 300.0)
    plan.attempt(0.0)
    plan.succeeded(0.0)
    plan.orphan_timeout = 86400.0
    assert not plan.orphaned(3600.0)


def test_a_hive_that_never_knows_us_is_not_asked_in_a_tight_loop() -> None:
    plan = BeatPlan(0.0, 30.0, 300.0)
    now, attempts = 0.0, 0
    while (now := max(now, plan.due(now))) < 30.0:
        attempts += 1
        plan.attempt(now)
        plan.failed(now)
        if plan.failures <= 1:
            plan.beat_at_once(now)
    assert attempts <= 6


def test_announcing_waits_longer_each_time_up_to_8_seconds() -> None:
    assert [announce_delay(failures) for failures in (1, 2, 3, 4, 5, 100)] == [1, 2, 4, 8, 8, 8]


@given(st.floats(0.05, 100.0), st.floats(0.05, 1000.0), st.lists(st.tuples(st.booleans(), st.floats(0.0, 50.0))))
def test_whatever_happens_the_next_attempt_is_at_most_one_interval_away(
    interval: float, orphan_timeout: float, story: list[tuple[bool, float]]
) -> None:
    plan, now = BeatPlan(0.0, interval, orphan_timeout), 0.0
    for good, took in story:
        now = max(now, plan.due(now))
        plan.attempt(now)
        now += took
        if good:
            plan.succeeded(now)
        else:
            plan.failed(now)
        assert plan.due(now) <= now + interval * (1 + 1e-6)


@given(st.floats(0.0, 1e8), st.floats(0.01, 1e8))
def test_an_end_is_over_before_a_hive_that_stops_kills_the_keeper(drain_timeout: float, end_timeout: float) -> None:
    """It then gives 0.7 of its usual grace."""
    assert drain_at_most(drain_timeout, end_timeout) <= kill_after(end_timeout) / 2 + 1e-6
    assert kill_after(end_timeout) < 0.7 * end_timeout


def test_an_end_by_hand_takes_as_long_as_its_requests() -> None:
    assert (drain_at_most(30.0, None), kill_after(None)) == (30.0, 6.0)
    assert (drain_at_most(30.0, 10.0), drain_at_most(1.0, 10.0), kill_after(10.0)) == (3.0, 1.0, 6.0)
