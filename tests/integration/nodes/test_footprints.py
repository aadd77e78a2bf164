"""What a worker uses is what its keeper and all below it use."""

import os

import pytest

from rbee.nodes import footprints
from tests.hives import wait_for
from tests.integration.nodes.family import Member, family

pytestmark = pytest.mark.anyio
HELD = 64 * 2**20
HOLDER = Member("holder", hold_bytes=HELD)


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
