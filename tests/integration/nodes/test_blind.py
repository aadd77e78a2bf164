"""Not to be able to look at a process is never taken for its end, and leaves no descriptor open."""

import os
import signal
from dataclasses import replace

import pytest

from rbee.core.exits import ExitReason
from rbee.nodes import processes, sweep
from rbee.nodes.local import LocalNode
from rbee.nodes.marks import Marked
from tests.hives import pids
from tests.integration.nodes.exhausted import no_descriptors, open_descriptors
from tests.integration.nodes.family import family
from tests.integration.nodes.test_local import LAUNCH

pytestmark = pytest.mark.anyio


@pytest.fixture
def sleeper(start_sleeper):
    return start_sleeper(dict(os.environ))


@pytest.mark.parametrize("spare", [0, 1])
def test_a_process_that_cannot_be_looked_at_is_not_gone(sleeper, spare):
    identity = processes.identify(sleeper.pid)
    before = open_descriptors()
    with no_descriptors(spare):
        for look in (lambda: processes.watch(sleeper.pid), lambda: processes.hold(identity)):
            with pytest.raises(OSError, match="Too many open files"):
                look()
    assert open_descriptors() == before
    with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
        processes.start_time(sleeper.pid)
    watched = processes.watch(sleeper.pid)
    assert watched.identity == identity
    watched.close()


def test_one_whose_user_cannot_be_asked_for_is_let_go_of(sleeper, monkeypatch):
    def unknown(pid):
        raise OSError(f"nobody can say whose {pid} is")

    monkeypatch.setattr(processes, "same_user", unknown)
    before = open_descriptors()
    with pytest.raises(OSError, match="whose"):
        processes.watch(sleeper.pid)
    assert open_descriptors() == before


def test_one_that_is_gone_is_gone_for_sure(sleeper):
    identity = processes.identify(sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    assert processes.watch(sleeper.pid) is None
    assert processes.hold(identity) is None


async def test_a_living_worker_that_cannot_be_looked_at_is_not_given_up(node, row, worker_id):
    with family(f"{worker_id}:7") as worker:
        known = replace(row, identity=processes.identify(worker["keeper"].pid))
        before = open_descriptors()
        for stored in (known, row):
            with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
                await node.adopt(stored)
        with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
            await node.find_keeper(worker_id, 7)
        assert open_descriptors() == before
        process = await node.adopt(row)
        process.kill()
        await process.wait()


def test_the_engine_of_a_keeper_that_cannot_be_looked_at_is_no_orphan(monkeypatch):
    engine = Marked(os.getpid(), "w:1", f"{os.getpid()}:{processes.start_time(os.getpid())}")
    with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
        sweep._is_orphan(engine)

    def forbidden(pid):
        raise PermissionError(f"{pid} is nobody's business")

    monkeypatch.setattr(processes, "start_time", forbidden)
    assert not sweep._is_orphan(engine)


async def test_a_keeper_that_cannot_be_told_from_others_is_not_kept(tmp_path, monkeypatch):
    node = LocalNode(tmp_path, dict(os.environ), 10**6, keep=5)
    started = []

    def unreadable(pid):
        started.append(pid)
        raise OSError("its start time cannot be read")

    monkeypatch.setattr(processes, "identify_child", unreadable)
    before = open_descriptors()
    with pytest.raises(OSError, match="start time"):
        await node.spawn(LAUNCH)
    assert open_descriptors() == before
    assert started[0] not in pids()
    await node.sweep("w-1", 3)


async def test_a_keeper_that_ends_at_once_is_known_by_its_own_start(tmp_path, monkeypatch):
    node = LocalNode(tmp_path, dict(os.environ), 10**6, keep=5)
    really = processes.Handle

    def slow(pid):
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return really(pid)

    monkeypatch.setattr(processes, "Handle", slow)
    process = await node.spawn(LAUNCH)
    assert process.identity.start_time > 0
    assert (await process.wait()).reason is ExitReason.CRASHED
    monkeypatch.undo()
    await node.sweep("w-1", 3)
