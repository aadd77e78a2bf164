"""The logs of workers are cut while workers come and go."""

import shutil
import threading

import anyio
import anyio.to_thread
import pytest
from structlog.testing import capture_logs

pytestmark = pytest.mark.anyio
LIVES = 100
AT_ONCE = 30


def come_and_go(directory, done):
    """Workers whose folders are removed as soon as they are made."""
    for _ in range(LIVES):
        folders = [directory / f"w-{number}" for number in range(AT_ONCE)]
        for folder in folders:
            folder.mkdir(parents=True)
            (folder / "1.log").write_bytes(b"a line\n")
        for folder in folders:
            shutil.rmtree(folder)
    done.set()


async def test_a_worker_that_is_forgotten_while_logs_are_cut_disturbs_nobody(node, tmp_path):
    done = threading.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(node.cut_logs, 0.0)
        await anyio.to_thread.run_sync(come_and_go, tmp_path / "workers", done)
        tasks.cancel_scope.cancel()
    assert done.is_set()


async def test_there_is_nothing_to_cut_before_the_first_worker(node):
    with capture_logs() as logged, anyio.move_on_after(0.05):
        await node.cut_logs(0.0)
    assert logged == []
