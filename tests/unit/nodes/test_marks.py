"""One scan of all processes serves all who wait for it, and nobody gets one that began before he asked."""

import threading

import anyio
import anyio.to_thread
import pytest

from rbee.nodes.marks import Marked, SharedScan

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    # A scan runs in a thread, and threads take real time.
    return "asyncio"


class Scans:
    """Each scan ends when it is let, and returns its number as a pid."""

    def __init__(self):
        self.begun = 0
        self.began = threading.Semaphore(0)
        self.let = threading.Semaphore(0)

    def __call__(self):
        self.begun += 1
        number = self.begun
        self.began.release()
        assert self.let.acquire(timeout=60)
        return [Marked(number, "w:1", "")]


async def test_many_share_a_scan_that_began_after_they_asked():
    scans = Scans()
    shared = SharedScan(scans)
    served = []

    async def ask(name):
        served.append((name, (await shared())[0].pid))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, "first")
        await anyio.to_thread.run_sync(scans.began.acquire)
        for _ in range(200):
            tasks.start_soon(ask, "late")
        await anyio.wait_all_tasks_blocked()
        scans.let.release(2)
    assert served == [("first", 1)] + [("late", 2)] * 200
    assert scans.begun == 2


async def test_one_who_leaves_takes_nobody_with_him():
    scans = Scans()
    shared = SharedScan(scans)
    left = anyio.CancelScope()

    async def leave():
        with left:
            await shared()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(leave)
        await anyio.to_thread.run_sync(scans.began.acquire)
        left.cancel()
        scans.let.release(2)
        assert (await shared())[0].pid == 2
