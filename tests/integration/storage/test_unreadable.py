"""What the store does with a file of an older version, and with one that it cannot read."""

import contextlib
import json
import sqlite3
from dataclasses import asdict, replace
from datetime import UTC, datetime

import pytest

from rbee.core.exits import Exit, ExitReason
from rbee.core.launch import Ending, ProcessIdentity, StoredWorker
from rbee.core.worker import WorkerSpec
from rbee.storage.workers import DatabaseFailed, WorkerStore

pytestmark = pytest.mark.anyio
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
FIRST_SCHEMA = """
CREATE TABLE IF NOT EXISTS workers (
    worker_id TEXT PRIMARY KEY,
    incarnation INTEGER NOT NULL,
    spec TEXT NOT NULL,
    pid INTEGER,
    start_time INTEGER,
    boot_id TEXT
) STRICT
"""
SECOND_SCHEMA_ADDED = (
    "url TEXT NOT NULL DEFAULT ''",
    "engine_pid INTEGER",
    "slots INTEGER NOT NULL DEFAULT 0",
    "restart_count INTEGER NOT NULL DEFAULT 0",
    "started_at TEXT NOT NULL DEFAULT ''",
)
SPEC = json.dumps(asdict(WorkerSpec("w-1", "synthetic:x")))


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rbee.db"


@contextlib.contextmanager
def database(path):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        yield db


def write_first_version(path, *rows, wal=True):
    with database(path) as db:
        if wal:
            db.execute("PRAGMA journal_mode = WAL")
        db.execute(FIRST_SCHEMA)
        db.execute("PRAGMA user_version = 1")
        db.executemany("INSERT INTO workers VALUES (?, ?, ?, ?, ?, ?)", rows)


async def write_present_version(path, count=1):
    store = WorkerStore(path)
    await store.open()
    for number in range(count):
        await store.save(StoredWorker(WorkerSpec(f"w-{number}", "synthetic:x", alias="a" * 200), 1))
    store.close()


async def assert_set_aside(path, words):
    """Opening keeps the file aside and says *words*; the store that is opened is empty and usable."""
    before = path.read_bytes()
    store = WorkerStore(path, lambda: NOON)
    kept = await store.open()
    assert kept is not None
    assert kept.path == path.with_name("rbee.db.unreadable-20261124T120000Z")
    assert kept.path.read_bytes() == before
    assert words in kept.reason
    assert str(path) in kept.reason
    assert kept.path.name in kept.reason
    assert await store.load() == []
    row = StoredWorker(WorkerSpec("new", "synthetic:x"), 1)
    await store.save(row)
    assert await store.load() == [row]
    store.close()


async def test_rows_of_the_first_version_are_taken_over(path):
    write_first_version(path, ("w-1", 3, SPEC, 77, 123456, "boot"), ("w-2", 1, SPEC.replace("w-1", "w-2"), *[None] * 3))
    store = WorkerStore(path)
    assert await store.open() is None
    adopted, unborn = await store.load()
    assert adopted == StoredWorker(WorkerSpec("w-1", "synthetic:x"), 3, ProcessIdentity(77, 123456, "boot"))
    assert unborn == StoredWorker(WorkerSpec("w-2", "synthetic:x"), 1)
    store.close()
    again = WorkerStore(path)
    assert await again.open() is None
    assert await again.load() == [adopted, unborn]
    again.close()


async def test_rows_of_the_second_version_are_taken_over(path):
    """Nobody is known to have asked for their end, nor how they ended before."""
    write_first_version(path, ("w-1", 3, SPEC, 77, 123456, "boot"))
    with database(path) as db:
        for column in SECOND_SCHEMA_ADDED:
            db.execute(f"ALTER TABLE workers ADD COLUMN {column}")
        db.execute("PRAGMA user_version = 2")
        db.execute("UPDATE workers SET url = 'http://127.0.0.1:8081', engine_pid = 78, slots = 4, restart_count = 2")
    store = WorkerStore(path)
    assert await store.open() is None
    identity = ProcessIdentity(77, 123456, "boot")
    expected = StoredWorker(WorkerSpec("w-1", "synthetic:x"), 3, identity, "http://127.0.0.1:8081", 78, 4, 2)
    assert await store.load() == [expected]
    ended = replace(expected, ending=Ending.AGAIN, last_exit=Exit(ExitReason.CRASHED, code=1))
    await store.save(ended)
    assert await store.load() == [ended]
    store.close()


@pytest.mark.parametrize(
    ("column", "text"),
    [("ending", "tomorrow"), ("last_exit", "{"), ("last_exit", '{"reason": "bored"}'), ("last_exit", "[]")],
)
async def test_an_end_that_this_version_does_not_know_sets_the_file_aside(path, column, text):
    await write_present_version(path)
    with database(path) as db:
        db.execute(f"UPDATE workers SET {column} = ?", (text,))
    await assert_set_aside(path, "the worker 'w-0' cannot be read")


async def test_a_migration_that_fails_changes_nothing(path):
    write_first_version(path, ("w-1", 3, SPEC, None, None, None))
    with database(path) as db:
        db.execute("ALTER TABLE workers ADD COLUMN last_exit TEXT")  # the last one that the migration adds
    with pytest.raises(DatabaseFailed, match="duplicate column"):
        await WorkerStore(path).open()
    with database(path) as db:
        columns = [name for _, name, *_ in db.execute("PRAGMA table_info(workers)")]
        assert "url" not in columns
        assert db.execute("PRAGMA user_version").fetchone() == (1,)


async def test_a_file_that_is_no_database_is_set_aside(path):
    path.write_bytes(b"no database at all " * 100)
    await assert_set_aside(path, "file is not a database")


async def test_a_file_cut_short_is_set_aside(path):
    await write_present_version(path, count=50)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    await assert_set_aside(path, "cannot be read")


async def test_garbage_in_the_middle_is_found_before_it_is_read(path):
    await write_present_version(path, count=200)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = b"garbage!" * 512
    path.write_bytes(content)
    await assert_set_aside(path, "cannot be read")


async def test_damage_where_no_row_stands_is_found_before_it_is_written_to(path):
    await write_present_version(path, count=200)
    with database(path) as db:
        db.execute("DELETE FROM workers")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    first_free = int.from_bytes(content[32:36], "big")  # sqlite.org/fileformat2.html#the_database_header
    content[(first_free - 1) * 4096 : first_free * 4096] = b"garbage!" * 512
    path.write_bytes(content)
    await assert_set_aside(path, "cannot be read")


async def test_a_newer_version_is_set_aside(path):
    await write_present_version(path)
    with database(path) as db:
        db.execute("PRAGMA user_version = 5")
    await assert_set_aside(path, "a newer rbee wrote it: schema 5, this one knows 4")


async def test_a_database_of_something_else_is_set_aside(path):
    with database(path) as db:
        db.execute("CREATE TABLE bookmarks (url TEXT)")
    await assert_set_aside(path, "tables of something else")


async def test_a_version_without_its_table_is_set_aside(path):
    with database(path) as db:
        db.execute("PRAGMA user_version = 2")
    await assert_set_aside(path, "no such table: workers")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "no JSON object"),
        ("[" * 100_000, "cannot be read"),
        ('{"worker_id": "w-1"}', "model_ref"),
        (SPEC.replace('"slots": 4', '"slots": "four"'), "slots"),
        (SPEC.replace('"on_failure"', '"sometimes"'), "restart"),
        (SPEC.replace('"slots": 4', '"slots": 4, "colour": "red"'), "colour, unknown to this version"),
        (SPEC.replace("w-1", "w-2"), "described as 'w-2'"),
    ],
)
@pytest.mark.parametrize("version", [1, 3])
async def test_a_row_that_this_version_does_not_know_sets_the_file_aside(path, spec, words, version):
    if version == 3:
        await write_present_version(path, count=0)
    else:
        write_first_version(path)
    with database(path) as db:
        db.execute("INSERT INTO workers (worker_id, incarnation, spec) VALUES ('w-1', 1, ?)", (spec,))
    await assert_set_aside(path, words)


async def test_text_that_is_no_utf8_sets_the_file_aside(path):
    write_first_version(path)
    with database(path) as db:
        db.execute("INSERT INTO workers (worker_id, incarnation, spec) VALUES ('w-1', 1, CAST(x'ff00' AS TEXT))")
    await assert_set_aside(path, "UTF-8")


async def test_no_earlier_one_is_overwritten_and_the_parts_stay_together(path):
    for content in (b"first " * 100, b"second " * 100, b"third " * 100):
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).write_bytes(content + suffix.encode())
        store = WorkerStore(path, lambda: NOON)
        kept = await store.open()
        store.close()
        assert [kept.path.with_name(kept.path.name + suffix).read_bytes() for suffix in ("", "-wal")] == [
            content,
            content + b"-wal",
        ]
        assert kept.path.with_name(f"{kept.path.name}-shm").exists()
    names = [f"rbee.db.unreadable-20261124T120000Z{number}" for number in ("", "-2", "-3")]
    assert all(path.with_name(name).exists() for name in names)


async def test_what_was_only_in_the_wal_can_still_be_read_where_it_is_kept(path):
    """A newer version's last commits stand in the -wal alone; SQLite finds them under the new names."""
    with database(path) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE workers (worker_id TEXT)")
        db.execute("PRAGMA user_version = 5")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.execute("INSERT INTO workers VALUES ('only-in-the-wal')")
        store = WorkerStore(path, lambda: NOON)
        kept = await store.open()
        store.close()
        copied = {suffix: kept.path.with_name(kept.path.name + suffix).read_bytes() for suffix in ("", "-wal")}
    assert copied["-wal"]
    for suffix, content in copied.items():
        path.with_name(f"copy{suffix}").write_bytes(content)
    with database(path.with_name("copy")) as db:
        assert db.execute("SELECT * FROM workers").fetchall() == [("only-in-the-wal",)]


async def test_what_somebody_else_has_locked_is_not_damaged(path, monkeypatch):
    monkeypatch.setattr("rbee.storage.aside.BUSY_TIMEOUT", 0.0)
    write_first_version(path, wal=False)
    with database(path) as db:
        db.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DatabaseFailed, match="locked"):
            await WorkerStore(path).open()
        db.execute("ROLLBACK")
    assert [file.name for file in path.parent.iterdir()] == ["rbee.db"]


async def test_a_folder_in_its_place_is_not_damaged(path):
    path.mkdir()
    with pytest.raises(DatabaseFailed, match="cannot be opened"):
        await WorkerStore(path).open()
    assert path.is_dir()
