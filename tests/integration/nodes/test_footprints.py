"""What a worker uses is what its keeper and all below it use."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rbee.nodes import footprints
from tests.hives import wait_for
from tests.integration.nodes.family import Member, family

pytestmark = pytest.mark.anyio
HELD = 64 * 2**20
HOLDER = Member("holder", hold_bytes=HELD)
MIB = 2**20
SLACK = 16 * MIB
"""What two interpreters take beside."""


@contextlib.contextmanager
def started(script, *arguments):
    """One of the programs beside this file, by its process and the word that it says once it is set up."""
    command = [sys.executable, "-S", Path(__file__).with_name(script), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, process.stdout.readline().strip()
        finally:
            for pid in footprints.tree(process.pid):
                os.kill(pid, signal.SIGKILL)


async def test_the_memory_of_grandchildren_counts(node, worker_id):
    with family(f"{worker_id}:7", Member("engine", children=[HOLDER])) as worker:
        used = await node.measure([worker["keeper"].pid, worker["holder"].pid, 2**22 + 1])
    whole, one = used[worker["keeper"].pid], used[worker["holder"].pid]
    assert set(used) == {worker["keeper"].pid, worker["holder"].pid}
    assert HELD <= one.private_bytes <= one.rss_bytes
    assert whole.private_bytes > one.private_bytes
    assert whole.rss_bytes >= whole.private_bytes
    assert whole.cpu_seconds >= one.cpu_seconds
    assert whole.read_bytes > one.read_bytes > 0


def test_a_grandchild_whose_parent_has_ended_stays_below_the_subreaper(worker_id):
    leaving = Member("engine", leaves=True, children=[HOLDER])
    with family(f"{worker_id}:7", leaving, subreaper=True) as worker:
        wait_for(lambda: not worker.alive("engine"), "the one between has ended")
        assert worker["holder"].pid in footprints.tree(worker["keeper"].pid)
        assert footprints.measure([worker["keeper"].pid])[worker["keeper"].pid].private_bytes >= HELD


def test_reading_a_file_moves_the_bytes_read_also_when_it_is_in_the_page_cache(tmp_path):
    model = tmp_path / "model"
    model.write_bytes(bytes(2**20))
    before = footprints.measure([os.getpid()])[os.getpid()]
    model.read_bytes()
    assert footprints.measure([os.getpid()])[os.getpid()].read_bytes >= before.read_bytes + 2**20


def test_one_that_has_ended_uses_nothing(worker_id):
    with family(f"{worker_id}:7") as worker:
        worker.keeper.kill()
        # Not reaped yet: it still is in the table of processes.
        os.waitid(os.P_PID, worker.keeper.pid, os.WEXITED | os.WNOWAIT)
        assert footprints.measure([worker.keeper.pid]) == {}


async def test_what_a_fork_shares_with_its_parent_counts_once_when_measured_exactly(node):
    with started("sharing.py", HELD) as (parent, _):
        quick = (await node.measure([parent.pid]))[parent.pid]
        exact = await node.measure_exactly(parent.pid)
    assert quick.private_bytes >= 6 * HELD
    assert 3 * HELD <= exact.private_bytes <= 3 * HELD + SLACK
    assert len(exact.pids) == 2
    assert exact.rss_bytes == pytest.approx(quick.rss_bytes, abs=SLACK)


async def test_one_that_has_ended_cannot_be_measured_exactly(node):
    with started("sharing.py", 4096) as (parent, _):
        pid = parent.pid
    assert await node.measure_exactly(pid) is None


def test_pages_of_a_file_are_locked_only_as_far_as_they_were(tmp_path):
    path = tmp_path / "weights"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
    with started("locking.py", path, 4 * MIB) as (process, word):
        used = footprints.measure([process.pid])[process.pid]
    if word == "refused":
        pytest.skip("nothing may be locked here")
    assert used.locked_bytes == 4 * MIB
    assert used.private_bytes < SLACK


def test_the_peak_stays_after_memory_was_given_back():
    program = "import sys; x = b'1' * int(sys.argv[1]); del x; print(); sys.stdin.read()"
    command = [sys.executable, "-S", "-c", program, str(HELD)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        used = footprints.measure([process.pid])[process.pid]
    assert used.rss_bytes < HELD <= used.peak_rss_bytes


async def test_all_that_was_counted_is_named(node, worker_id):
    with family(f"{worker_id}:7", Member("engine", children=[HOLDER])) as worker:
        used = await node.measure([worker["keeper"].pid])
        assert used[worker["keeper"].pid].pids == tuple(told.pid for told in worker.members.values())
