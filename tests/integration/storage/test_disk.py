"""The store against what happens around it: a kill -9, a disk that is full, one that cannot be written."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rbee.storage.workers import WorkerStore
from tests.small_disk import with_small_disk

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[3]
PRELUDE = """
import os, subprocess, sys
from pathlib import Path
import anyio
from rbee.core.launch import StoredWorker
from rbee.core.worker import WorkerSpec
from rbee.storage.workers import DatabaseFailed, WorkerStore
from tests.small_disk import fill

directory = Path(sys.argv[1])
path = directory / "rbee.db"

def row(name, size=0):
    return StoredWorker(WorkerSpec(name, "synthetic:x", alias="a" * size), 1)

async def expect_failure(call, words):
    try:
        await call
    except DatabaseFailed as error:
        assert words in str(error), error
    else:
        raise AssertionError("nothing was refused")
"""


@pytest.fixture
def anyio_backend():
    return "asyncio"


def script(body: str) -> list[str]:
    """A Python process that runs *body*; ``directory`` is its last argument."""
    return [sys.executable, "-c", PRELUDE + textwrap.dedent(body)]


def run_on_small_disk(directory: Path, body: str) -> None:
    directory.mkdir()
    command = [*with_small_disk(directory), *script(body), str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def kill_after(lines: int, command: list[str]) -> int:
    """Kill -9 the process when it has written so many lines; how many it has written in all."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        for _ in range(lines):
            assert process.stdout.readline()
        process.kill()
        return lines + len(process.stdout.read().splitlines())


async def test_a_hive_killed_while_it_writes_loses_nothing_that_was_committed(tmp_path):
    """Invariant: a row that ``save`` has returned for is there after a kill -9."""
    body = """
        async def main():
            store = WorkerStore(path)
            await store.open()
            for number in range(1_000_000):
                await store.save(row(f"w-{number}"))
                os.write(1, b"%d\\n" % number)
        anyio.run(main)
    """
    committed = kill_after(200, [*script(body), str(tmp_path)])
    assert (tmp_path / "rbee.db-wal").stat().st_size > 0
    store = WorkerStore(tmp_path / "rbee.db")
    assert await store.open() is None
    found = {stored.spec.worker_id for stored in await store.load()}
    store.close()
    assert {f"w-{number}" for number in range(committed)} <= found
    assert len(found) <= committed + 1


async def test_a_half_done_write_from_before_the_wal_is_rolled_back(tmp_path):
    """The very first write of a file is made with a journal to roll back from, which a reader may not do."""
    body = """
        import sqlite3
        async def main():
            store = WorkerStore(path)
            await store.open()
            await store.save(row("kept"))
            store.close()
        anyio.run(main)
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("PRAGMA cache_size = 1")
        db.execute("BEGIN")
        for number in range(1000):
            db.execute("INSERT INTO workers (worker_id, incarnation, spec) VALUES (?, 1, ?)", (str(number), "x" * 999))
        os.write(1, b"written\\n")
        sys.stdin.read()
    """
    kill_after(1, [*script(body), str(tmp_path)])
    assert (tmp_path / "rbee.db-journal").stat().st_size > 0
    store = WorkerStore(tmp_path / "rbee.db")
    assert await store.open() is None
    assert [stored.spec.worker_id for stored in await store.load()] == ["kept"]
    store.close()


def test_a_full_disk_is_an_error_and_not_damage(tmp_path):
    run_on_small_disk(
        tmp_path / "disk",
        """
        async def main():
            store = WorkerStore(path)
            assert await store.open() is None
            await store.save(row("kept"))
            ballast = fill(directory)
            async def write_on():
                for number in range(100):
                    await store.save(row(f"w-{number}", 1000))
            await expect_failure(write_on(), "full")
            assert row("kept") in await store.load()
            store.close()

            again = WorkerStore(path)
            assert await again.open() is None
            assert row("kept") in await again.load()
            await expect_failure(again.save(row("new", 100_000)), "full")
            ballast.unlink()
            await again.save(row("new"))
            assert row("new") in await again.load()
            again.close()
            assert not list(directory.glob("*unreadable*"))
        anyio.run(main)
        """,
    )


def test_a_full_disk_at_the_very_first_start_is_an_error(tmp_path):
    run_on_small_disk(
        tmp_path / "disk",
        """
        async def main():
            ballast = fill(directory)
            await expect_failure(WorkerStore(path).open(), "rbee.db cannot be opened")
            ballast.unlink()
            store = WorkerStore(path)
            assert await store.open() is None
            await store.save(row("new"))
            store.close()
        anyio.run(main)
        """,
    )


def test_a_hive_that_ended_cleanly_starts_on_a_full_disk_with_its_rows(tmp_path):
    """Its -wal and -shm are gone, and there is no room for new ones."""
    run_on_small_disk(
        tmp_path / "disk",
        """
        async def main():
            store = WorkerStore(path)
            await store.open()
            await store.save(row("kept"))
            store.close()
            assert [file.name for file in directory.iterdir()] == ["rbee.db"]
            ballast = fill(directory)

            again = WorkerStore(path)
            assert await again.open() is None
            assert await again.load() == [row("kept")]
            await expect_failure(again.save(row("new")), "rbee.db")
            await expect_failure(again.forget("kept"), "rbee.db")
            assert await again.load() == [row("kept")]
            ballast.unlink()
            await again.save(row("new"))
            assert await again.load() == [row("kept"), row("new")]
            again.close()
            await expect_failure(again.load(), "closed")
            assert not list(directory.glob("*unreadable*"))
        anyio.run(main)
        """,
    )


def test_an_older_version_is_read_on_a_full_disk_and_brought_up_when_there_is_room(tmp_path):
    run_on_small_disk(
        tmp_path / "disk",
        """
        import sqlite3
        async def main():
            store = WorkerStore(path)
            await store.open()
            await store.save(row("kept"))
            store.close()
            db = sqlite3.connect(path, isolation_level=None)
            db.execute("ALTER TABLE workers DROP COLUMN ending")
            db.execute("ALTER TABLE workers DROP COLUMN last_exit")
            db.execute("ALTER TABLE workers DROP COLUMN claim")
            db.execute("PRAGMA user_version = 2")
            db.close()
            ballast = fill(directory)
            again = WorkerStore(path)
            assert await again.open() is None
            assert await again.load() == [row("kept")]
            ballast.unlink()
            await again.save(row("new"))
            assert await again.load() == [row("kept"), row("new")]
            again.close()
        anyio.run(main)
        """,
    )


def test_what_stands_in_the_wal_is_never_left_out(tmp_path):
    """A hive that was killed, its -shm gone too: without it the last rows cannot be read, and are not forgotten."""
    run_on_small_disk(
        tmp_path / "disk",
        """
        import shutil
        async def main():
            store = WorkerStore(path)
            await store.open()
            await store.save(row("kept"))
            copied = directory / "copy"
            copied.mkdir()
            for suffix in ("", "-wal"):
                shutil.copy(f"{path}{suffix}", copied)
            fill(directory)
            await expect_failure(WorkerStore(copied / path.name).open(), "rbee.db cannot be opened")
            assert not list(directory.glob("**/*unreadable*"))
        anyio.run(main)
        """,
    )


def test_a_state_directory_on_a_full_disk_is_locked_all_the_same(tmp_path):
    run_on_small_disk(
        tmp_path / "disk",
        """
        from rbee.core.errors import StateDirectoryInUse
        from rbee.storage.lock import DirectoryLock
        (directory / "lock").touch()
        fill(directory)
        held = DirectoryLock(directory / "lock")
        try:
            DirectoryLock(directory / "lock")
        except StateDirectoryInUse as error:
            assert "pid unknown" in str(error), error
        else:
            raise AssertionError("nobody holds it")
        held.release()
        """,
    )


def test_damage_on_a_full_disk_is_set_aside_and_told_with_the_error(tmp_path):
    run_on_small_disk(
        tmp_path / "disk",
        """
        async def main():
            path.write_bytes(b"garbage " * 100)
            fill(directory)
            await expect_failure(WorkerStore(path).open(), "file is not a database")
            assert len(list(directory.glob("rbee.db.unreadable-*"))) == 1
        anyio.run(main)
        """,
    )


def test_a_directory_that_cannot_be_written_is_an_error_and_not_damage(tmp_path):
    run_on_small_disk(
        tmp_path / "disk",
        """
        async def main():
            store = WorkerStore(path)
            await store.open()
            await store.save(row("kept"))
            store.close()
            subprocess.run(["mount", "-o", "remount,ro", str(directory)], check=True)
            await expect_failure(WorkerStore(path).open(), "rbee.db cannot be opened")
            assert [file.name for file in directory.iterdir()] == ["rbee.db"]
            subprocess.run(["mount", "-o", "remount,rw", str(directory)], check=True)
            assert await store.open() is None
            assert await store.load() == [row("kept")]
            store.close()
        anyio.run(main)
        """,
    )


def test_a_file_that_cannot_be_written_is_told_at_once(tmp_path):
    """Not at the first spawn: SQLite opens such a file, and reads it."""
    run_on_small_disk(
        tmp_path / "disk",
        """
        async def main():
            store = WorkerStore(path)
            await store.open()
            store.close()
            subprocess.run(["mount", "--bind", path, path], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)
            await expect_failure(WorkerStore(path).open(), "readonly")
            subprocess.run(["umount", path], check=True)
            assert not list(directory.glob("*unreadable*"))
        anyio.run(main)
        """,
    )
