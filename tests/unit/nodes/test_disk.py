"""A disk that answers, one that hangs, and one that fails."""

import threading

import pytest
from structlog.testing import capture_logs

from rbee.core.resources import DiskReading, EngineBuild, MemoryReading
from rbee.nodes import disk
from rbee.nodes.disk import Disk
from rbee.nodes.machine import LocalMachine
from tests.hives import wait_for

GOOD = DiskReading("/models", 100, 40)
MEMORY = MemoryReading(1000, 500)


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Server:
    """Plays the disk: *answer* is what it says, an error it raises; it keeps all waiting while it is not ``here``."""

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


async def build_of(python):
    return EngineBuild()


@pytest.fixture
def server():
    played = Server()
    yield played
    played.here.set()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def watched(tmp_path, server, clock):
    return Disk(tmp_path, server.read, clock)


@pytest.fixture
def machine(tmp_path, watched):
    return LocalMachine(watched, Disk(tmp_path), build_of, read_memory=lambda: MEMORY)


def test_the_nearest_directory_that_exists_is_read(tmp_path):
    whole = disk.read(tmp_path)
    below = disk.read(tmp_path / "not" / "there" / "yet")
    assert below.path == str(tmp_path / "not" / "there" / "yet")
    assert below.total_bytes == whole.total_bytes > 0
    (tmp_path / "file").touch()
    assert disk.read(tmp_path / "file" / "x").total_bytes == whole.total_bytes


def test_a_disk_that_answers_is_read_each_time(watched, server):
    assert watched.read() == GOOD
    server.answer = DiskReading("/models", 100, 30)
    assert watched.read() == server.answer


def test_a_disk_that_fails_is_said_once_until_it_works_again(watched, server):
    watched.read()
    with capture_logs() as logged:
        for answer in (OSError(5, "Input/output error"), GOOD, OSError(116, "Stale file handle")):
            server.answer = answer
            assert watched.read() == GOOD
            assert watched.read() == GOOD
    assert [line["reason"] for line in logged] == ["[Errno 5] Input/output error", "[Errno 116] Stale file handle"]


@pytest.mark.anyio
async def test_a_disk_that_hangs_is_waited_for_once_and_its_last_reading_serves(machine, server, clock):
    await machine.look()
    server.here.clear()
    with capture_logs() as logged:
        found = await machine.look()
        assert (found.memory, found.models_disk) == (MEMORY, GOOD)
        clock.now += 2 * disk.PATIENCE
        for _ in range(100):
            assert (await machine.look()).models_disk == GOOD
    assert server.asked == 2
    assert [line["event"] for line in logged] == ["disk_not_read"]


@pytest.mark.anyio
async def test_the_other_disk_is_read_while_one_hangs(machine, server, clock, tmp_path):
    server.here.clear()
    await machine.look()
    clock.now += 2 * disk.PATIENCE
    found = await machine.look()
    assert found.models_disk == DiskReading(str(tmp_path), 0, 0)
    assert found.state_disk.free_bytes > 0


@pytest.mark.anyio
async def test_a_disk_that_comes_back_is_read_again(machine, watched, server, clock):
    server.here.clear()
    await machine.look()
    clock.now += 2 * disk.PATIENCE
    server.here.set()
    wait_for(lambda: watched.read() == GOOD, "its thread has ended")
    assert (await machine.look()).models_disk == GOOD
