"""A worker in a cgroup of its own: what hides from every mark still cannot hide from that."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rbee.nodes import cgroups, sweep
from rbee.nodes.cgroups import WorkerGroups
from rbee.nodes.local import LocalNode
from tests.hives import wait_for
from tests.integration.nodes.exhausted import no_descriptors
from tests.integration.nodes.family import Member, family
from tests.integration.nodes.test_local import LAUNCH

pytestmark = pytest.mark.anyio
HIDDEN = Member("engine", children=[Member("helper", setsid=True, bare=True, listens=True)])


@pytest.fixture
def parent(worker_id):
    """A group like one that is delegated to a hive; skipped where this user may make none."""
    top = cgroups.directory_of("self")
    if top is None:
        pytest.skip("there is no cgroup v2 here")
    path = top / f"test-{worker_id}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no group can be made in {top}: {error.strerror}")
    yield path
    if not cgroups.remove(path):
        cgroups.kill(path)
        wait_for(lambda: cgroups.remove(path), "the test's group is empty")


@pytest.fixture
def groups(parent):
    return WorkerGroups(parent)


@pytest.fixture
def node(tmp_path, groups):
    return LocalNode(tmp_path / "workers", dict(os.environ), 10**6, keep=5, groups=groups)


def started_in(groups, worker_id, **options):
    """A keeper that was put into its group before it started anything, as far as a test can tell."""
    return family(f"{worker_id}:7", HIDDEN, enter=lambda pid: groups.join(worker_id, 7, pid), **options)


async def test_a_kill_reaches_what_left_session_and_environment(node, groups, row, worker_id):
    with started_in(groups, worker_id) as worker:
        process = await node.adopt(row)
        process.kill()
        await process.wait()
        wait_for(lambda: not worker.alive("helper"), "the hidden one is gone, too")
        await node.sweep(worker_id, 7)
        assert groups.find(worker_id, 7) is None


async def test_a_sweep_reaches_it_after_the_keeper_was_killed(node, groups, worker_id):
    with started_in(groups, worker_id) as worker:
        worker.kill_keeper()
        assert worker.alive("helper")
        assert await node.sweep(worker_id, 7) == 2
        assert not worker.alive("helper")
        assert node.port_is_free("127.0.0.1", worker["helper"].port)
        assert groups.find(worker_id, 7) is None


async def test_without_groups_such_a_one_cannot_be_found(tmp_path, worker_id):
    # Not what we wish, but what the marks alone can do; it shows that the groups are what helps above.
    node = LocalNode(tmp_path, dict(os.environ), 10**6, keep=5, groups=WorkerGroups(None))
    with family(f"{worker_id}:7", HIDDEN) as worker:
        worker.kill_keeper()
        assert await node.sweep(worker_id, 7) == 1
        assert worker.alive("helper")


async def test_the_next_hive_ends_what_no_keeper_holds_together_and_removes_the_groups(node, groups, worker_id):
    (groups.parent / "rbee-w-empty.3").mkdir()
    (groups.parent / "somebody").mkdir()
    with started_in(groups, worker_id) as left, family(f"{worker_id}:8", HIDDEN) as living:
        groups.join(worker_id, 8, living["keeper"].pid)
        left.kill_keeper()
        assert await node.sweep_orphans() >= 1
        assert not left.alive("helper")
        assert all(living.alive(name) for name in living.members)
        assert sorted(path.name for path in groups.parent.iterdir() if path.is_dir()) == [
            f"rbee-{worker_id}.8",
            "somebody",
        ]


async def test_an_adopted_worker_keeps_a_group_that_lies_elsewhere(tmp_path, groups, row, worker_id):
    node = LocalNode(tmp_path, dict(os.environ), 10**6, keep=5, groups=WorkerGroups(None))
    with started_in(groups, worker_id) as worker:
        process = await node.adopt(row)
        worker.kill_keeper()
        await process.wait()
        await node.sweep(worker_id, 7)
        assert not worker.alive("helper")
        assert groups.find(worker_id, 7) is None


async def test_a_spawned_keeper_is_in_its_own_group(node, groups):
    process = await node.spawn(LAUNCH)
    group = groups.find("w-1", 3)
    assert cgroups.members(group) == [process.identity.pid]
    assert (group / "cgroup.controllers").read_text() == (group.parent / "cgroup.subtree_control").read_text()
    process.kill()
    await process.wait()
    await node.sweep("w-1", 3)
    assert not group.exists()


async def test_a_group_that_cannot_be_looked_into_is_not_empty(node, groups, worker_id):
    with started_in(groups, worker_id) as worker:
        group = groups.find(worker_id, 7)
        with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
            cgroups.members(group)
        with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
            cgroups.directory_of(worker["keeper"].pid)
        with no_descriptors():
            assert not groups.forget(group)
            assert sweep._has_keeper(group, f"{worker_id}:7")
    assert cgroups.members(groups.parent / "nowhere") == []


def test_a_list_of_processes_that_may_not_be_read_is_not_empty(tmp_path):
    (tmp_path / "cgroup.procs").mkdir()
    with pytest.raises(IsADirectoryError):
        cgroups.members(tmp_path)


def test_groups_are_made_only_where_they_are_ours_to_make(parent):
    tell = "from rbee.nodes import cgroups; print(cgroups.delegated())"
    enter = f"import os; open({str(parent / 'cgroup.procs')!r}, 'w').write(str(os.getpid())); "
    told = subprocess.run([sys.executable, "-c", enter + tell], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.strip() == str(parent)
    # The root group is nobody's to divide, not even root's.
    top = next(path for path in (parent, *parent.parents) if not (path / "cgroup.type").exists())
    enter = f"import os; open({str(top / 'cgroup.procs')!r}, 'w').write(str(os.getpid())); "
    told = subprocess.run([sys.executable, "-c", enter + tell], capture_output=True, text=True, check=False, timeout=60)
    if told.returncode:
        pytest.skip("this user may not enter the root group")
    assert told.stdout.strip() == "None"


@pytest.mark.parametrize("worker_id", ["../w", "w/1", "", "w" * 200])
def test_no_group_is_made_for_an_odd_name(tmp_path, worker_id):
    assert WorkerGroups(tmp_path).join(worker_id, 1, os.getpid()) is None
    assert list(Path(tmp_path).iterdir()) == []


def test_a_worker_runs_without_a_group_where_none_can_be_made(tmp_path):
    groups = WorkerGroups(tmp_path / "not" / "there")
    assert groups.join("w-1", 1, os.getpid()) is None
    assert groups.find("w-1", 1) is None
