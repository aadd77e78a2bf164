"""The counters of the out-of-memory killer, from files that a test writes."""

import pytest

from rbee.nodes.oom import SHORTLY, OomWatch


class Counter:
    def __init__(self, path):
        self.path = path
        self.now = 1000.0
        self.write(0)
        self.watch = OomWatch(counter_of=lambda _pid: path, clock=lambda: self.now)

    def write(self, count):
        self.path.write_text(f"low 0\noom 7\noom_kill {count}\noom_group_kill 3\n")


@pytest.fixture
def counter(tmp_path):
    return Counter(tmp_path / "memory.events")


def test_a_count_that_moved_explains_one_death_each(counter):
    births = [counter.watch.begin(pid) for pid in range(3)]
    counter.write(2)
    assert [counter.watch.explains(birth) for birth in births] == [True, True, False]


def test_a_count_that_stood_still_explains_nothing(counter):
    counter.write(5)
    birth = counter.watch.begin(1)
    assert counter.watch.explains(birth) is False


def test_a_move_before_its_birth_is_not_its_death(counter):
    counter.watch.begin(1)
    counter.write(1)
    assert counter.watch.explains(counter.watch.begin(2)) is False


def test_a_move_that_a_look_has_seen_is_remembered_for_a_while(counter):
    birth = counter.watch.begin(1)
    counter.write(2)
    counter.watch.look()
    counter.now += SHORTLY
    assert counter.watch.explains(birth) is True
    counter.now += 0.1
    assert counter.watch.explains(birth) is False


def test_a_move_since_a_look_of_long_ago_may_be_an_old_one(counter):
    birth = counter.watch.begin(1)
    counter.now += SHORTLY + 0.1
    counter.write(1)
    assert counter.watch.explains(birth) is None


def test_without_a_counter_nobody_can_tell(counter, tmp_path):
    nowhere = OomWatch(counter_of=lambda _pid: None)
    assert nowhere.explains(nowhere.begin(1)) is None
    birth = counter.watch.begin(1)
    counter.path.unlink()
    assert counter.watch.explains(birth) is None
