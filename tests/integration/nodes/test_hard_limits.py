"""The kernel's own rules for handing a controller down, with whichever controller this machine has in v2."""

import contextlib
import json
import subprocess
import sys

import pytest

from rbee.nodes import cgroups
from rbee.nodes.cgroups import WorkerGroups
from tests.hives import wait_for

HIVE = """
import json, os, subprocess, sys
from pathlib import Path
from rbee.nodes import cgroups, hard_limits
from rbee.nodes.cgroups import WorkerGroups
Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
with_child = subprocess.Popen(["/bin/sleep", "600"])
try:
    parent = hard_limits.hand_down(cgroups.delegated(), sys.argv[2])
except OSError as error:
    told = {"error": str(error)}
else:
    worker = WorkerGroups(parent).join("w-1", 1, with_child.pid)
    told = {
        "parent": str(parent),
        "hands_down": (parent / "cgroup.subtree_control").read_text().split(),
        "worker": cgroups.members(worker),
        "worker_has": (worker / "cgroup.controllers").read_text().split(),
        "child": with_child.pid,
    }
told["own"] = str(cgroups.directory_of("self"))
print(json.dumps(told))
with_child.kill()
with_child.wait()
"""


@pytest.fixture
def controller():
    """One that the group above hands down to ours; skipped where there is none."""
    top = cgroups.directory_of("self")
    if top is None:
        pytest.skip("there is no cgroup v2 here")
    switch = top / "cgroup.subtree_control"
    before = switch.read_text().split()
    there = [name for name in (top / "cgroup.controllers").read_text().split() if name in ("memory", "hugetlb", "io")]
    with contextlib.suppress(OSError):
        if there and not set(there) & set(before):
            switch.write_text(f"+{there[0]}")
    handed = [name for name in switch.read_text().split() if name in there]
    if not handed:
        pytest.skip("no controller can be handed down here")
    yield handed[0]
    with contextlib.suppress(OSError):
        if handed[0] not in before:
            switch.write_text(f"-{handed[0]}")


@pytest.fixture
def own(controller, worker_id):
    """The group that is delegated to the hive of a test."""
    path = cgroups.directory_of("self") / f"test-{worker_id}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no group can be made here: {error.strerror}")
    yield path
    wait_for(lambda: cgroups.remove(path), "the test's group is empty")


def hive_in(group, controller):
    command = [sys.executable, "-c", HIVE, str(group), controller]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


def test_the_kernel_hands_the_controller_down_once_the_hive_is_in_a_leaf(own, controller):
    told = hive_in(own, controller)
    assert (told["parent"], told["own"]) == (str(own), str(own / "hive"))
    assert told["hands_down"] == told["worker_has"] == [controller]
    assert told["worker"] == [told["child"]]


def test_the_next_hive_that_is_started_in_the_leaf_finds_all_in_place(own, controller):
    hive_in(own, controller)
    again = hive_in(own / "hive", controller)
    assert (again["parent"], again["own"]) == (str(own), str(own / "hive"))
    assert again["worker_has"] == [controller]


def test_a_group_with_other_processes_is_left_alone(own, controller):
    with subprocess.Popen(["/bin/sleep", "600"]) as stranger:
        try:
            (own / "cgroup.procs").write_text(str(stranger.pid))
            told = hive_in(own, controller)
        finally:
            stranger.kill()
    assert f"other processes, too: {stranger.pid}" in told["error"]
    assert told["own"] == str(own)
    assert not (own / "hive").exists()
    assert (own / "cgroup.subtree_control").read_text().split() == []


def test_a_worker_without_the_memory_controller_still_is_in_its_group(own):
    with subprocess.Popen(["/bin/sleep", "600"]) as worker:
        try:
            group = WorkerGroups(own, limits_memory=True).join("w-1", 1, worker.pid, 2**30)
            if (group / "memory.max").exists():
                pytest.skip("memory is handed down here")
            assert cgroups.members(group) == [worker.pid]
        finally:
            worker.kill()
