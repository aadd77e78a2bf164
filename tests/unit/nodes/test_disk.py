"""A disk that answers, one that hangs, and one that fails."""

import threading

import anyio
import pytest
from structlog.testing import capture_logs

from rbee.core.resources import DiskReading
from rbee.nodes import disk
from rbee.nodes.disk import Disk

pytestmark = pytest.mark.anyio
GOOD = DiskReading("/models", 100, 40)


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Server:
    """Plays the disk: *answer* is what it says, an error it raises; it waits while ``away``."""

    def __init__(self, answer=GOOD):
        self.answer = answer
        self.here = threading.Event()
        self.here.set()
        self.asked = 0

    def read(self, directory):
        self.asked += 1
        self.here.wait(60)
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_the_nearest_directory_that_exists_is_read(tmp_path):
    whole = disk.read(tmp_path)
    below = disk.read(tmp_path / "not" / "there" / "yet")
    assert below.path == str(tmp_path / "not" / "there" / "yet")
    assert below.total_bytes == whole.total_bytes > 0
    (tmp_path / "file").touch()
    assert disk.read(tmp_path / "file" / "x").total_bytes == whole.total_bytes


async def test_a_disk_that_answers_is_read_each_time(tmp_path):
    server = Server()
    watched = Disk(tmp_path, server.read)
    assert await watched.look() == GOOD
    server.answer = DiskReading("/models", 100, 30)
    assert await watched.look() == server.answer


async def test_a_disk_that_hangs_is_waited_for_once_and_its_last_reading_serves(tmp_path):
    server, clock = Server(), Clock()
    watched = Disk(tmp_path, server.read, clock)
    await watched.look()
    server.here.clear()
    with capture_logs() as logged:
        assert await watched.look() == GOOD
        clock.now += 2 * disk.PATIENCE
        asked = server.asked
        for _ in range(100):
            assert await watched.look() == GOOD
    assert server.asked == asked
    assert [line["event"] for line in logged] == ["disk_not_read"]
    server.here.set()


async def test_a_disk_that_comes_back_is_read_again(tmp_path):
    server, clock = Server(), Clock()
    watched = Disk(tmp_path, server.read, clock)
    server.here.clear()
    assert (await watched.look()).free_bytes == 0
    clock.now += 2 * disk.PATIENCE
    server.here.set()
    # Only once its thread has ended is it asked again.
    with anyio.fail_after(60):
        while await watched.look() != GOOD:  # noqa: ASYNC110 - nothing tells a test that a thread has ended
            await anyio.sleep(0.01)


async def test_a_disk_that_fails_is_said_once_until_it_works_again(tmp_path):
    server = Server()
    watched = Disk(tmp_path, server.read)
    await watched.look()
    with capture_logs() as logged:
        for answer in (OSError(5, "Input/output error"), GOOD, OSError(116, "Stale file handle")):
            server.answer = answer
            assert await watched.look() == GOOD
            assert await watched.look() == GOOD
    assert [line["reason"] for line in logged] == ["[Errno 5] Input/output error", "[Errno 116] Stale file handle"]
