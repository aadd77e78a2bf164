"""How a worker ended: from its status, from what its keeper left, and from the kernel's counters."""

import json
import os
import signal
from dataclasses import replace

import pytest

from rbee.core.exits import UNKNOWN, ExitReason
from rbee.nodes.cgroups import WorkerGroups
from rbee.nodes.local import LocalNode
from rbee.nodes.oom import OomWatch
from tests.integration.nodes.family import family
from tests.integration.nodes.test_local import LAUNCH

pytestmark = pytest.mark.anyio
CRASHED = {"incarnation": 7, "reason": "crashed", "message": "it fell", "exit_code": 1, "engine_signal": 11}


@pytest.fixture
def leave_word(tmp_path, worker_id):
    def leave(word, incarnation=7):
        folder = tmp_path / "workers" / worker_id
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{incarnation}.exit.json").write_text(word if isinstance(word, str) else json.dumps(word))

    return leave


@pytest.fixture
def counter(tmp_path):
    path = tmp_path / "memory.events"
    path.write_text("oom_kill 0\n")
    return path


@pytest.fixture
def counting(tmp_path, counter):
    """A node that takes *counter* for that of all its workers."""
    oom = OomWatch(counter_of=lambda _pid: counter)
    return LocalNode(tmp_path / "workers", dict(os.environ), 10**6, keep=5, groups=WorkerGroups(None), oom=oom)


async def ended_unasked(node):
    process = await node.spawn(LAUNCH)
    os.kill(process.identity.pid, signal.SIGKILL)
    exit_ = await process.wait()
    await node.sweep("w-1", 3)
    return exit_


async def test_an_adopted_worker_ends_as_its_keeper_says(node, row, worker_id, leave_word):
    with family(f"{worker_id}:7") as worker:
        process = await node.adopt(row)
        leave_word(CRASHED)
        worker.kill_keeper()
        exit_ = await process.wait()
    assert (exit_.reason, exit_.how(), exit_.message) == (ExitReason.CRASHED, "killed by SIGSEGV", "it fell")


@pytest.mark.parametrize(
    "word", [None, {**CRASHED, "incarnation": 6}, {**CRASHED, "incarnation": None}, "", "[]", "{", "[" * 100_000]
)
async def test_without_a_word_of_this_very_life_the_end_is_unknown(node, row, worker_id, leave_word, word):
    if word is not None:
        leave_word(word)
    with family(f"{worker_id}:7") as worker:
        process = await node.adopt(row)
        worker.kill_keeper()
        assert await process.wait() == UNKNOWN
    assert await node.last_word(worker_id, 7) == UNKNOWN


async def test_the_last_word_of_a_worker_that_nobody_waited_for(node, worker_id, leave_word):
    leave_word({"incarnation": 7, "reason": "orphaned", "message": "no hive", "exit_code": 1})
    exit_ = await node.last_word(worker_id, 7)
    assert (exit_.reason, exit_.how(), exit_.message) == (ExitReason.STALE, "exit code 1", "no hive")
    leave_word({**CRASHED, "engine_signal": 9})
    exit_ = await node.last_word(worker_id, 7)
    assert exit_.how() == "killed by SIGKILL (the kernel's out-of-memory killer?)"


async def test_a_kill_by_the_kernel_is_told_by_its_counter(counting, counter):
    process = await counting.spawn(LAUNCH)
    counter.write_text("oom_kill 1\n")
    await counting.measure([])
    os.kill(process.identity.pid, signal.SIGKILL)
    exit_ = await process.wait()
    assert (exit_.reason, exit_.how()) == (
        ExitReason.OOM,
        "killed by SIGKILL (the kernel's out-of-memory killer)",
    )
    # Where the counter stands still, it was somebody else.
    exit_ = await ended_unasked(counting)
    assert (exit_.reason, exit_.how()) == (ExitReason.CRASHED, "killed by SIGKILL")


async def test_a_worker_that_reached_its_own_hard_limit_is_told_with_the_number(tmp_path, counter):
    oom = OomWatch(counter_of=lambda _pid: counter)
    groups = WorkerGroups(tmp_path, limits_memory=True)
    node = LocalNode(tmp_path / "workers", dict(os.environ), 10**6, keep=5, groups=groups, oom=oom)
    process = await node.spawn(replace(LAUNCH, memory_limit_bytes=512 * 2**20))
    counter.write_text("oom_kill 1\n")
    (groups.find("w-1", 3) / "memory.events").write_text("max 40\noom 1\noom_kill 1\n")
    os.kill(process.identity.pid, signal.SIGKILL)
    exit_ = await process.wait()
    assert (exit_.reason, exit_.message) == (ExitReason.OOM, "it reached the hard limit of 512 MiB")


async def test_without_a_counter_the_kernel_is_a_guess(counting, counter):
    counter.unlink()
    exit_ = await ended_unasked(counting)
    assert (exit_.reason, exit_.how()) == (
        ExitReason.CRASHED,
        "killed by SIGKILL (the kernel's out-of-memory killer?)",
    )


async def test_an_engine_that_the_kernel_killed_is_told_by_its_keeper(counting, row, worker_id, counter, leave_word):
    with family(f"{worker_id}:7") as worker:
        process = await counting.adopt(row)
        leave_word({**CRASHED, "engine_signal": 9})
        counter.write_text("oom_kill 1\n")
        worker.kill_keeper()
        exit_ = await process.wait()
    assert (exit_.reason, exit_.signal_number) == (ExitReason.OOM, signal.SIGKILL)


@pytest.mark.parametrize("by", ["kill", "sweep"])
async def test_what_we_kill_is_never_laid_at_the_kernels_door(counting, counter, by):
    process = await counting.spawn(LAUNCH)
    counter.write_text("oom_kill 1\n")
    if by == "kill":
        process.kill()
    else:
        await counting.sweep("w-1", 3)
    exit_ = await process.wait()
    assert (exit_.reason, exit_.how()) == (ExitReason.CRASHED, "killed by SIGKILL")


async def test_a_word_of_an_earlier_life_with_the_same_number_is_removed_at_the_start(tmp_path, node):
    left = tmp_path / "workers" / "w-1" / "3.exit.json"
    left.parent.mkdir(parents=True)
    left.write_text(json.dumps({**CRASHED, "incarnation": 3}))
    exit_ = await ended_unasked(node)
    assert (exit_.signal_number, exit_.message) == (signal.SIGKILL, "")
