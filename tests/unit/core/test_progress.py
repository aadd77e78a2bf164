from dataclasses import replace
from functools import partial

import pytest

from rbee.core import progress
from rbee.core.launch import Footprint, Telemetry
from rbee.core.progress import Motion, Quiet, Reading, Still, Work

MIB, GIB = 2**20, 2**30
BUSY = Work(in_flight=2)
worked = partial(progress.worked, processor_seconds=1.0)


def reading(at=0.0, cpu=0.0, pid=7, **used):
    return Reading(pid, at, Footprint(cpu_seconds=cpu, **used))


def motion(at=0.0, cpu=0.0, *, relayed=0, counters=(0, 0, 0)):
    return Motion(relayed, counters, reading(at, cpu))


STILL = Still(0.0, motion())


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (motion(5), False),
        (motion(5, relayed=1), True),
        (motion(5, counters=(1, 0, 0)), True),
        (motion(5, counters=(0, 1, 0)), True),
        (motion(5, counters=(0, 0, 1)), True),
        (motion(5, 0.99), False),
        (motion(5, 1.0), True),
    ],
)
def test_a_byte_a_counter_or_a_second_of_processor_time_is_work(seen, expected):
    assert worked(motion(), seen) is expected


def test_what_was_not_seen_is_not_taken_for_stillness():
    unseen = Motion(0, (None, None, None))
    assert not worked(motion(), unseen), "nothing new is known of it"
    assert worked(unseen, motion()), "it may have moved before it was first seen"
    assert worked(motion(cpu=5.0), motion(cpu=4.0)), "a process of it ended"
    assert worked(motion(), replace(motion(), reading=reading(pid=8))), "another engine"


@pytest.mark.parametrize(("seconds", "expected"), [(120.0, 1.0), (60.0, 0.5), (240.0, 2.0), (2.0, 0.05), (0.5, 0.05)])
def test_the_second_of_processor_time_keeps_its_proportion(seconds, expected):
    assert progress.processor_threshold(seconds) == pytest.approx(expected)


def test_a_stillness_goes_on_until_something_moves():
    begun = progress.stillness(None, motion(), 3.0, worked)
    assert begun == Still(3.0, motion())
    assert progress.stillness(begun, motion(4, 0.5), 4.0, worked) is begun
    moved = motion(5, 0.6, relayed=1)
    assert progress.stillness(begun, moved, 5.0, worked) == Still(5.0, moved)


def test_a_busy_worker_that_moved_nothing_for_the_whole_time_hangs():
    reason = progress.hung(STILL, motion(120.0, 0.1), BUSY, 120.0, 120.0)
    assert reason == "hung: 2 requests, and for 120 s no byte, no counter and 0.1 s of processor time"
    assert "hung: 1 request," in progress.hung(STILL, motion(121.0), Work(in_flight=1), 121.0, 120.0)


@pytest.mark.parametrize(
    ("seen", "work"),
    [
        (motion(119.9), BUSY),
        (motion(120.0, 1.0), BUSY),
        (motion(120.0), Work()),
        (Motion(0, (0, 0, 0)), BUSY),
        (replace(motion(120.0), reading=reading(120.0, pid=8)), BUSY),
    ],
    ids=["too early", "processor time", "no work", "no reading", "another process"],
)
def test_what_is_not_proven_is_no_hang(seen, work):
    assert progress.hung(STILL, seen, work, 120.0, 120.0) is None


def test_a_hang_needs_a_reading_from_its_beginning_too():
    assert progress.hung(Still(0.0, Motion(0, (0, 0, 0))), motion(130.0), BUSY, 130.0, 120.0) is None


def test_slots_that_an_old_beat_called_busy_prove_nothing():
    told = Work(slots_busy=3, heard_at=0.0)
    assert progress.hung(STILL, motion(120.0), told, 120.0, 120.0) is None
    assert "hung: 3 requests" in progress.hung(STILL, motion(120.0), replace(told, heard_at=90.0), 120.0, 120.0)


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        (reading(10, 0.0), False),
        (reading(10, 0.49), False),
        (reading(10, 0.5), True),
        (reading(0.5, 0.04), False),
        (reading(0.5, 0.05), True),
        (reading(10, rss_bytes=MIB - 1), False),
        (reading(10, rss_bytes=MIB), True),
        (reading(10, read_bytes=MIB - 1), False),
        (reading(10, read_bytes=MIB), True),
        (reading(10, pid=8), True),
    ],
)
def test_a_load_gets_on_by_memory_bytes_read_or_processor_time(used, expected):
    assert progress.load_moved(Motion(reading=reading()), Motion(reading=used)) is expected


def test_memory_that_is_given_back_is_movement_too():
    assert progress.load_moved(Motion(reading=reading(rss_bytes=9 * MIB)), Motion(reading=reading(5)))


def test_a_load_that_nobody_could_see_is_not_given_up_for_lack_of_progress():
    unseen = Motion()
    assert not progress.load_moved(Motion(reading=reading()), unseen)
    assert progress.load_moved(unseen, Motion(reading=reading()))
    assert progress.load_stands_still(Still(0.0, unseen), unseen, 9999.0, 300.0) is None


def test_a_load_that_stood_still_is_given_up_on_time():
    still = Still(0.0, Motion(reading=reading()))
    assert progress.load_stands_still(still, Motion(reading=reading(299.9)), 299.9, 300.0) is None
    reason = progress.load_stands_still(still, Motion(reading=reading(300.0, 0.4)), 300.0, 300.0)
    assert reason is not None
    assert "stood still for 300 s (lifecycle.load_timeout)" in reason
    assert "0.4 s of processor time" in reason


def test_no_load_may_take_longer_than_the_limit():
    assert progress.loads_too_long(5.0, 3604.9, 3600.0) is None
    assert "3600 s, the most that lifecycle.load_limit" in progress.loads_too_long(5.0, 3605.0, 3600.0)


def test_memory_is_judged_by_the_smaller_limit_and_names_it():
    held = Footprint(rss_bytes=99 * GIB, private_bytes=3 * GIB)
    assert progress.over_memory(held, None, 3 * GIB) is None
    assert progress.over_memory(held, 4 * GIB, 8 * GIB) is None
    assert "3.00 GiB of memory, more than the 2.00 GiB that limits.max_worker" in progress.over_memory(
        held, None, 2 * GIB
    )
    assert "the 512 MiB that its max_memory_bytes" in progress.over_memory(held, 512 * MIB, 8 * GIB)
    assert "limits.max_worker_memory" in progress.over_memory(held, 8 * GIB, 2 * GIB)
    barely = progress.over_memory(replace(held, private_bytes=GIB + 1), None, GIB)
    assert "1073741825 bytes of memory, more than the 1073741824 bytes" in barely


def test_a_worker_is_quiet_since_it_is_ready_or_since_its_last_request():
    fresh = progress.quiet(None, Work(), 3.5, ready_since=3.0)
    assert fresh == Quiet(3.0, 3.0)
    running = progress.quiet(fresh, Work(in_flight=1, requests=1), 10.0, 3.0)
    assert running.since == 10.0
    over = progress.quiet(running, Work(requests=1), 12.0, 3.0)
    assert over.since == 12.0
    assert progress.quiet(over, Work(requests=1), 20.0, 3.0) is over
    between_two_looks = progress.quiet(over, Work(requests=2), 21.0, 3.0)
    assert between_two_looks.since == 21.0
    assert progress.quiet(between_two_looks, Work(requests=2), 50.0, 3.0) is between_two_looks


def test_slots_busy_past_the_gateway_keep_it_and_what_its_own_requests_left_in_a_beat_does_not():
    before = Quiet(20.0, 20.0, 5)
    assert progress.quiet(before, Work(requests=5, slots_busy=1, heard_at=19.0), 30.0, 3.0) is before
    kept = progress.quiet(before, Work(requests=5, slots_busy=1, heard_at=25.0), 30.0, 3.0)
    assert kept.since == 30.0
    assert progress.quiet(kept, Work(requests=5, slots_busy=1, heard_at=25.0), 31.0, 3.0).since == 31.0
    assert progress.quiet(kept, Work(requests=5, heard_at=55.0), 60.0, 3.0) is kept


def test_the_counters_are_those_that_only_grow():
    told = Telemetry(requests_total=1, prompt_tokens_total=2, generated_tokens_total=3, slots_busy=4)
    assert progress.counters(told) == (1, 2, 3)
