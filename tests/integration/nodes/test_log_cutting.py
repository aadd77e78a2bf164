"""The logs of workers are cut while workers come and go."""

import shutil
import subprocess
import sys
import threading

import anyio
import anyio.to_thread
import pytest
from structlog.testing import capture_logs

from tests.small_disk import with_small_disk

pytestmark = pytest.mark.anyio
LIVES = 100
AT_ONCE = 30

FILLING = """
import os, sys
from pathlib import Path
from rbee.nodes.cgroups import WorkerGroups
from rbee.nodes.local import LocalNode

directory = Path(sys.argv[1])
(directory / "w-1").mkdir()
old, new = directory / "w-1" / "1.log", directory / "w-1" / "2.log"
old.write_bytes((b"x" * 63 + b"\\n") * 16384)
with new.open("ab", buffering=0) as output:
    try:
        while True:
            output.write(b"y" * 63 + b"\\n")
    except OSError:
        pass
    full = os.statvfs(directory)
    LocalNode(directory, {}, 10**9, 5, groups=WorkerGroups(None))._cut_all()
    free = os.statvfs(directory)
    output.write(b"and on\\n")
print(full.f_bavail, free.f_bavail * 8 >= free.f_blocks, old.exists(), new.read_bytes()[-7:])
"""


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


def test_a_disk_that_logs_have_filled_has_room_again_and_the_worker_writes_on(tmp_path):
    command = [*with_small_disk(tmp_path, "size=4m"), sys.executable, "-c", FILLING, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == r"0 True False b'and on\n'"
    assert "logs_cut_for_room" in done.stdout
