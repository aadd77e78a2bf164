"""What is slow of one kind holds up nothing of another, and never the threads that all the rest of the hive shares."""

import os
import threading

import anyio
import anyio.to_thread
import pytest

from rbee.nodes import lanes, processes
from rbee.nodes.cgroups import WorkerGroups
from rbee.nodes.local import LocalNode
from tests.integration.nodes.test_local import LAUNCH

pytestmark = pytest.mark.anyio


class SlowMachine(LocalNode):
    """A fork, a measurement or the cut of a log takes until it is ``let``."""

    def __init__(self, directory):
        super().__init__(directory, dict(os.environ), 10**6, keep=5, groups=WorkerGroups(None))
        self.let = threading.Event()

    def _spawn(self, launch):
        assert self.let.wait(60)

    _measure = _cut_all = lambda self, *_: self.let.wait(60)


@pytest.fixture
def slow_node(tmp_path):
    return SlowMachine(tmp_path)


@pytest.fixture
def slow_work(request, slow_node):
    return {
        "forks": lambda: slow_node.spawn(LAUNCH),
        "measurements": lambda: slow_node.measure([]),
        "disk": lambda: slow_node.cut_logs(0),
    }[request.param]


@pytest.mark.parametrize("slow_work", ["forks", "measurements", "disk"], indirect=True)
async def test_what_is_slow_leaves_threads_to_all_others(slow_node, slow_work, worker_id):
    async with anyio.create_task_group() as tasks:
        for _ in range(200):
            tasks.start_soon(slow_work)
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(60):
            assert await anyio.to_thread.run_sync(lambda: "a beat") == "a beat"
            assert await slow_node.sweep(worker_id, 7) == 0
        tasks.cancel_scope.cancel()
        slow_node.let.set()


async def test_waiting_for_many_processes_without_pidfds_leaves_threads_to_all_others(monkeypatch):
    let = threading.Event()
    monkeypatch.delattr(os, "pidfd_open")
    monkeypatch.setattr(processes, "_wait_elsewhere", lambda _pid: let.wait(60))
    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(processes.Handle(os.getpid()).wait)
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(60):
            assert await anyio.to_thread.run_sync(lambda: "a beat") == "a beat"
            assert await lanes.SCANS.run(lambda: "a scan") == "a scan"
        let.set()
