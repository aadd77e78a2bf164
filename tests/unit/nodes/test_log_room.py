"""Which logs go first, and how far, by a disk that a test plays."""

import os

import pytest
from structlog.testing import capture_logs

from rbee.core.resources import STATE_RESERVE_BYTES, DiskReading, state_reserve
from rbee.nodes.log_room import SHORT_BYTES, LogRoom

KIB = 1024
TOTAL = 2**40
RESERVE = STATE_RESERVE_BYTES


class Disk:
    """What is left on it follows from the logs: *others* is what everybody else has left."""

    def __init__(self, folder, others):
        self.folder = folder
        self.others = others

    def read(self, directory):
        used = sum(path.stat().st_size for path in self.folder.rglob("*.log"))
        return DiskReading(str(directory), TOTAL, self.others - used)


@pytest.fixture
def folder(tmp_path):
    """Two workers: three lives and one, a MiB each, the second worker's older than all."""
    for number, (worker, life) in enumerate([("w-2", 1), ("w-1", 3), ("w-1", 4), ("w-1", 5)]):
        path = tmp_path / worker / f"{life}.log"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((b"x" * 63 + b"\n") * (16 * KIB))
        os.utime(path, (number, number))
    (tmp_path / "w-1" / "3.exit.json").write_text("{}")
    return tmp_path


def kept(folder):
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*.log"))}


def room(folder, short_of):
    return LogRoom(folder, 10 * 2**20, Disk(folder, RESERVE + 4 * 2**20 - short_of).read)


def test_while_there_is_room_nothing_is_cut(folder):
    with capture_logs() as logged:
        room(folder, 0).keep()
    assert list(kept(folder).values()) == [2**20] * 4
    assert logged == []


def test_lives_that_are_over_go_first_and_the_oldest_of_them(folder):
    os.utime(folder / "w-1" / "4.log", (0, 0))
    room(folder, 1).keep()
    assert set(kept(folder)) == {"w-1/3.log", "w-1/5.log", "w-2/1.log"}
    assert (folder / "w-1" / "3.exit.json").exists()


def test_then_the_present_logs_are_cut_to_their_end(folder):
    room(folder, 4 * 2**20).keep()
    assert set(kept(folder)) == {"w-1/5.log", "w-2/1.log"}
    assert all(0 < size <= SHORT_BYTES for size in kept(folder).values())


def test_no_more_is_cut_than_is_needed(folder):
    room(folder, 2 * 2**20 + 1).keep()
    assert sorted(kept(folder).values())[-1] == 2**20


def test_it_is_said_once_until_there_is_clearly_room_again(folder):
    disk = Disk(folder, RESERVE - 1)
    keeper = LogRoom(folder, 10 * 2**20, disk.read)
    with capture_logs() as logged:
        for others in (RESERVE - 1, RESERVE + 2**30 // 64, RESERVE - 1):
            disk.others = others
            (folder / "w-2" / "1.log").write_bytes((b"x" * 63 + b"\n") * (16 * KIB))
            keeper.keep()
        assert [line["event"] for line in logged] == ["logs_cut_for_room"]
        disk.others = 4 * RESERVE
        keeper.keep()
        disk.others = RESERVE - 1
        (folder / "w-2" / "1.log").write_bytes((b"x" * 63 + b"\n") * (16 * KIB))
        keeper.keep()
    assert [line["event"] for line in logged] == ["logs_cut_for_room"] * 2


def test_a_small_disk_keeps_a_part_of_itself_free():
    assert state_reserve(DiskReading("/", 80, 80)) == 10
    assert state_reserve(DiskReading("/", TOTAL, 0)) == RESERVE


def test_a_disk_that_cannot_be_read_is_no_reason_to_cut(folder):
    def fail(directory):
        raise OSError(5, "Input/output error")

    with capture_logs() as logged:
        LogRoom(folder, 10 * 2**20, fail).keep()
    assert list(kept(folder).values()) == [2**20] * 4
    assert [line["event"] for line in logged] == ["log_not_cut"]
