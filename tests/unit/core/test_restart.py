"""Backoff, jitter and the circuit, on bare numbers."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.core import restart
from rbee.core.events import GiveUp, OpenCircuit, RestartAfter
from rbee.core.exits import Exit, ExitReason
from rbee.core.restart import Circuit, CircuitState, Failure, RestartRules
from rbee.core.worker import Restart, WorkerSpec

RULES = RestartRules()
CRASH = Exit(ExitReason.CRASHED, code=1)
CLEAN = Exit(ExitReason.STOPPED, code=0)
SPEC = WorkerSpec("w-1", "synthetic:x", engine="synthetic")


def failure(worker_id="w-1", *, exit_=CRASH, ready_since=None):
    return Failure(worker_id, exit_, ready_since)


def after(times, circuit=None, **details):
    circuit = circuit or Circuit("synthetic:x")
    for at in times:
        circuit = restart.failed(circuit, RULES, failure(**details), at)
    return circuit


@pytest.mark.parametrize(("count", "delay"), [(1, 1.0), (2, 2.0), (3, 4.0), (7, 60.0), (10_000, 60.0)])
def test_the_delay_doubles_up_to_its_limit(count, delay):
    assert restart.delay_after(RULES, count, 0.0) == delay


@given(st.integers(1, 100), st.floats(-1, 1))
def test_the_jitter_stays_within_a_fifth(count, spread):
    plain = restart.delay_after(RULES, count, 0.0)
    assert 0.8 * plain <= restart.delay_after(RULES, count, spread) <= 1.2 * plain


def test_five_failures_in_the_period_open_the_circuit():
    assert restart.state_of(after([0, 10, 20, 30]), 30) is CircuitState.CLOSED
    opened = after([0, 10, 20, 30, 40])
    assert restart.state_of(opened, 40) is CircuitState.OPEN
    assert opened.probe_at == 100
    assert restart.why(opened, RULES) == "5 failures in 300 s"


def test_a_slow_crash_loop_opens_it_though_its_period_never_holds_five():
    """Each life ends 80 s after the last: never five in 300 s, and never stable."""
    times = [80.0 * life for life in range(5)]
    opened = after(times, ready_since=None)
    assert len(after(times[:4]).failures) == 4
    assert restart.state_of(opened, times[-1]) is CircuitState.OPEN
    assert restart.why(opened, RULES) == "5 failures in a row without 300 s of stable running between"


def test_a_stable_time_starts_a_new_row():
    circuit = after([0, 10, 20, 30])
    circuit = restart.failed(circuit, RULES, failure(ready_since=100.0), 400.0)
    assert (circuit.count, circuit.in_a_row) == (1, {"w-1": 1})
    almost = restart.failed(after([0, 10, 20, 30]), RULES, failure(ready_since=100.5), 400.0)
    assert almost.in_a_row == {"w-1": 5}


def test_the_row_of_one_worker_is_not_held_against_another():
    circuit = after([0, 80, 160, 240])
    fresh = restart.failed(circuit, RULES, failure("w-2"), 10_000.0)
    assert (fresh.count_of("w-2"), restart.state_of(fresh, 10_000.0)) == (1, CircuitState.CLOSED)
    assert restart.gone(fresh, "w-1").count == 1


def test_the_same_thing_asked_for_again_and_again_does_not_get_round_its_failures():
    circuit = Circuit("synthetic:x")
    for number in range(5):
        circuit = restart.gone(restart.failed(circuit, RULES, failure(f"w-{number}"), 10.0 * number), f"w-{number}")
    assert restart.state_of(circuit, 40.0) is CircuitState.OPEN


def test_an_open_circuit_lets_nobody_start_then_one():
    opened = after([0, 1, 2, 3, 4])
    assert restart.wait_to_start(opened, RULES, "w-1", 10.0) == 54.0
    assert restart.wait_to_start(opened, RULES, "w-1", 64.0) is None
    trying = restart.tried_by(opened, "w-1")
    assert restart.state_of(trying, 64.0) is CircuitState.HALF_OPEN
    assert restart.wait_to_start(trying, RULES, "w-1", 64.0) is None
    assert restart.wait_to_start(trying, RULES, "w-2", 64.0) == 60.0


def test_a_try_that_fails_opens_it_again_and_one_that_is_stable_closes_it():
    trying = restart.tried_by(after([0, 1, 2, 3, 4]), "w-1")
    reopened = restart.failed(trying, RULES, failure(), 70.0)
    assert (restart.state_of(reopened, 70.0), reopened.probe_at) == (CircuitState.OPEN, 130.0)
    running = restart.ready(trying, "w-1", 70.0)
    assert restart.wait_to_start(running, RULES, "w-2", 100.0) == 270.0
    assert restart.state_of(restart.settled(running, RULES, 369.0), 369.0) is CircuitState.HALF_OPEN
    closed = restart.settled(running, RULES, 370.0)
    assert (restart.state_of(closed, 370.0), closed.count) == (CircuitState.CLOSED, 0)


def test_only_the_one_that_tries_decides():
    trying = restart.tried_by(after([0, 1, 2, 3, 4]), "w-1")
    assert restart.ready(trying, "w-2", 70.0) == trying
    other = restart.failed(trying, RULES, failure("w-2"), 71.0)
    assert (other.trying, restart.state_of(other, 71.0)) == ("w-1", CircuitState.HALF_OPEN)
    assert restart.gone(trying, "w-2") == trying
    assert restart.wait_to_start(restart.gone(trying, "w-1"), RULES, "w-2", 71.0) is None


@pytest.mark.parametrize(
    ("policy", "exit_", "decision"),
    [
        (Restart.NEVER, CRASH, GiveUp),
        (Restart.ON_FAILURE, CRASH, RestartAfter),
        (Restart.ON_FAILURE, CLEAN, GiveUp),
        (Restart.ALWAYS, CLEAN, RestartAfter),
        (Restart.ON_FAILURE, Exit(ExitReason.STALE), RestartAfter),
    ],
)
def test_each_policy_restarts_what_it_says(policy, exit_, decision):
    assert isinstance(restart.decide(policy, RULES, after([0]), failure(exit_=exit_), 0.0, 0.0), decision)


def test_a_restart_says_which_attempt_it_is():
    decision = restart.decide(Restart.ON_FAILURE, RULES, after([0, 10, 20]), failure(), 20.0, 0.0)
    assert decision == RestartAfter(4.0, "attempt 3 of 5 in 300 s")
    slow = restart.decide(Restart.ON_FAILURE, RULES, after([0, 200, 400, 600]), failure(), 600.0, 0.0)
    assert slow == RestartAfter(8.0, "attempt 4 of 5 without 300 s of stable running between")


def test_the_failures_of_others_of_its_kind_are_named_and_do_not_delay_it():
    circuit = restart.failed(after([0, 10, 20]), RULES, failure("w-2"), 30.0)
    decision = restart.decide(Restart.ON_FAILURE, RULES, circuit, failure("w-2"), 30.0, 0.0)
    assert decision == RestartAfter(1.0, "attempt 1, failure 4 of 5 in 300 s among workers of its kind")


def test_the_failure_that_opens_the_circuit_waits_for_its_next_try():
    decision = restart.decide(Restart.ON_FAILURE, RULES, after([0, 1, 2, 3, 4]), failure(), 4.0, 0.0)
    assert decision == OpenCircuit(60.0, "Its circuit is open (5 failures in 300 s)")


def test_what_is_nobodys_fault_is_tried_again_without_a_count():
    assert restart.resume(Restart.ON_FAILURE, RULES, 0.0) == RestartAfter(1.0, "not counted as a failure")
    assert restart.postpone(Restart.ALWAYS, RULES, 3, 0.0) == RestartAfter(4.0, "not counted as a failure")
    assert isinstance(restart.resume(Restart.NEVER, RULES, 0.0), GiveUp)
    assert isinstance(restart.postpone(Restart.NEVER, RULES, 1, 0.0), GiveUp)


def test_the_same_model_with_other_settings_has_a_circuit_of_its_own():
    assert restart.key_of(SPEC) == restart.key_of(replace(SPEC, worker_id="w-2", alias="other", restart=Restart.NEVER))
    for change in ({"ctx_size": 1}, {"engine_args": ("--crash-after", "1")}, {"model_ref": "synthetic:y"}):
        assert restart.key_of(SPEC) != restart.key_of(replace(SPEC, **change))


STORY = st.lists(st.tuples(st.floats(0.0, 400.0), st.booleans(), st.sampled_from(["w-1", "w-2"])), max_size=30)


@given(STORY)
def test_no_story_lets_more_than_the_budget_of_failures_pass_without_opening(story):
    """Between two openings of a circuit there are never more than max_failures - 1 failures within a period."""
    circuit, now, since_open = Circuit("synthetic:x"), 0.0, []
    for seconds, was_ready, worker_id in story:
        now += seconds
        if restart.wait_to_start(circuit, RULES, worker_id, now) is not None:
            continue
        if circuit.probe_at is not None:
            circuit = restart.tried_by(circuit, worker_id)
        life = failure(worker_id, ready_since=now - 1.0 if was_ready else None)
        circuit = restart.failed(circuit, RULES, life, now)
        if restart.state_of(circuit, now) is CircuitState.OPEN:
            since_open = []
        else:
            since_open.append((now, worker_id))
        assert len([at for at, _ in since_open if now - at < RULES.period]) < RULES.max_failures
        rows = [whose for _, whose in since_open]
        assert all(rows.count(whose) < RULES.max_failures for whose in rows), "none of these lives was stable"
