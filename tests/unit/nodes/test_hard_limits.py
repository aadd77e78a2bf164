"""What is written into the groups, from recorded files; the real rules are tried in tests/integration."""

import os

import pytest
from structlog.testing import capture_logs

from rbee.nodes import hard_limits
from rbee.nodes.cgroups import WorkerGroups
from rbee.nodes.oom import limit_reached


@pytest.fixture
def recorded(tmp_path):
    """Plays a group that is delegated, with the controllers that a test names."""

    def make(name="hive.scope", controllers="memory pids", procs=()):
        group = tmp_path / name
        group.mkdir(parents=True)
        (group / "cgroup.controllers").write_text(f"{controllers}\n")
        (group / "cgroup.type").write_text("domain\n")
        (group / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in procs))
        (group / "cgroup.subtree_control").write_text("")
        return group

    return make


def test_the_hive_goes_into_a_leaf_before_the_controller_is_handed_down(recorded):
    own = recorded(procs=[os.getpid()])
    assert hard_limits.hand_down(own, "memory") == own
    assert (own / "hive" / "cgroup.procs").read_text() == str(os.getpid())
    assert (own / "cgroup.subtree_control").read_text() == "+memory"


def test_one_that_was_started_in_the_leaf_stays_there(recorded):
    parent, own = recorded("rbee.service"), recorded("rbee.service/hive", procs=[os.getpid()])
    assert hard_limits.hand_down(own, "memory") == parent
    assert (parent / "cgroup.subtree_control").read_text() == "+memory"
    assert not (own / "hive").exists()


def test_the_group_above_is_not_touched_by_a_hive_in_a_group_of_another_name(recorded):
    above, own = recorded("user.slice"), recorded("user.slice/hive.scope", procs=[os.getpid()])
    assert hard_limits.hand_down(own, "memory") == own
    assert (above / "cgroup.subtree_control").read_text() == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"controllers": "hugetlb"}, "memory is not handed down"),
        ({"procs": [1]}, "other processes, too: 1"),
        ({"name": "rbee.service"}, "without DelegateSubgroup=hive"),
    ],
)
def test_where_it_cannot_be_the_reason_is_said_and_nothing_is_moved(recorded, options, words):
    own = recorded(**options)
    with capture_logs() as logged:
        groups = hard_limits.worker_groups(own)
    assert [line["event"] for line in logged] == ["hard_memory_limit_not_possible"]
    assert words in logged[0]["reason"]
    assert groups.parent == own
    assert not (own / "hive").exists()
    assert (own / "cgroup.subtree_control").read_text() == ""


def test_the_hive_goes_back_where_the_controller_cannot_be_handed_down(recorded):
    own = recorded(procs=[os.getpid()])
    (own / "cgroup.subtree_control").unlink()
    (own / "cgroup.subtree_control").mkdir()
    (own / "cgroup.procs").write_text(f"{os.getpid()}\n")
    with pytest.raises(OSError, match="cannot hand down memory"):
        hard_limits.hand_down(own, "memory")
    assert (own / "cgroup.procs").read_text() == str(os.getpid())


def test_without_a_group_of_its_own_the_hive_has_nothing_to_hand_down():
    with pytest.raises(OSError, match="no cgroup v2 is delegated"):
        hard_limits.hand_down(None, "memory")


def test_a_worker_gets_its_limit_where_groups_can_limit(tmp_path):
    group = WorkerGroups(tmp_path, limits_memory=True).join("w-1", 1, 123, 2**30)
    assert (group / "memory.max").read_text() == str(2**30)
    assert (group / "cgroup.procs").read_text() == "123"


@pytest.mark.parametrize(("limits_memory", "limit"), [(False, 2**30), (True, None)])
def test_no_limit_is_written_unless_there_is_one_and_it_can_hold(tmp_path, limits_memory, limit):
    group = WorkerGroups(tmp_path, limits_memory).join("w-1", 1, 123, limit)
    assert not (group / "memory.max").exists()


def test_a_worker_whose_limit_cannot_be_written_runs_in_its_group_without_one(tmp_path):
    (tmp_path / "rbee-w-1.1" / "memory.max").mkdir(parents=True)
    with capture_logs() as logged:
        assert WorkerGroups(tmp_path, limits_memory=True).join("w-1", 1, 123, 2**30) is not None
    assert [line["event"] for line in logged] == ["no_memory_limit_for_worker"]


@pytest.mark.parametrize(
    ("limit", "events", "reached"),
    [
        ("1048576", "max 9\noom 1\noom_kill 1\n", 2**20),
        ("1048576", "max 9\noom 0\noom_kill 1\n", None),
        ("max", "oom 1\noom_kill 1\n", None),
    ],
)
def test_a_limit_is_reached_where_memory_ran_out_by_it(tmp_path, limit, events, reached):
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.events").write_text(events)
    assert limit_reached(tmp_path) == reached


def test_a_group_without_the_controller_reaches_no_limit(tmp_path):
    assert limit_reached(tmp_path) is None
