import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.core.liveness import after_pause, paused, seen

seconds = st.floats(0, 1e6, allow_nan=False)


def test_a_worker_is_stale_on_its_deadline_and_not_before():
    vital = seen(100.0, 60.0)
    assert not vital.is_stale(159.999)
    assert vital.is_stale(160.0)
    assert vital.age(130.0) == 30.0


@pytest.mark.parametrize(("gap", "is_pause"), [(0.25, False), (0.5, False), (0.501, True), (90.0, True)])
def test_a_gap_over_half_a_second_is_a_pause(gap, is_pause):
    assert paused(gap) is is_pause


def test_after_a_pause_every_worker_has_an_interval_and_a_beats_timeout():
    overdue = seen(0.0, 60.0)
    forgiven = after_pause(overdue, 200.0, 30.0)
    assert (forgiven.since, forgiven.deadline) == (0.0, 235.0)
    assert not forgiven.is_stale(234.9)


@given(seconds, seconds, seconds)
def test_a_pause_never_brings_a_deadline_nearer(start, pause_end, interval):
    vital = seen(start, 60.0)
    forgiven = after_pause(vital, pause_end, interval)
    assert forgiven.deadline >= vital.deadline
    assert forgiven.deadline >= pause_end + interval
