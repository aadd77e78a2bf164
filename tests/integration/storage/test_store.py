"""The same contract on the fake store and on the real one, and what the real one does with bad files."""

import sqlite3
from dataclasses import replace

import pytest

from rbee.core.errors import StateDirectoryInUse
from rbee.core.launch import ProcessIdentity, StoredWorker
from rbee.core.worker import Restart, WorkerSpec
from rbee.storage import secret
from rbee.storage.lock import DirectoryLock
from rbee.storage.workers import DatabaseFailed, WorkerStore
from rbee.testing import FakeStore

pytestmark = pytest.mark.anyio
SPEC = WorkerSpec("w-1", "synthetic:x", engine_args=("--load-seconds", "1"), restart=Restart.NEVER, idle_timeout=1.5)
ROW = StoredWorker(SPEC, 1)
IDENTITY = ProcessIdentity(77, 123456, "boot")


@pytest.fixture
def anyio_backend():
    """The real store works in threads, which a jumping clock cannot wait for."""
    return "asyncio"


@pytest.fixture(params=["fake", "real"])
async def store(request, tmp_path):
    if request.param == "fake":
        yield FakeStore()
        return
    real = WorkerStore(tmp_path / "rbee.db")
    await real.open()
    yield real
    real.close()


async def test_what_is_saved_is_loaded(store):
    await store.save(ROW)
    assert list(await store.load()) == [ROW]


async def test_a_row_is_replaced_as_a_whole(store):
    await store.save(ROW)
    await store.save(replace(ROW, identity=IDENTITY))
    assert list(await store.load()) == [replace(ROW, identity=IDENTITY)]
    await store.save(replace(ROW, incarnation=2))
    assert list(await store.load()) == [replace(ROW, incarnation=2)]


async def test_what_is_forgotten_is_gone_and_may_be_forgotten_again(store):
    await store.save(ROW)
    await store.save(StoredWorker(replace(SPEC, worker_id="w-2"), 1))
    await store.forget("w-1")
    await store.forget("w-1")
    assert [row.spec.worker_id for row in await store.load()] == ["w-2"]


async def test_it_survives_being_closed_and_opened(tmp_path):
    first = WorkerStore(tmp_path / "rbee.db")
    await first.open()
    await first.save(replace(ROW, identity=IDENTITY))
    first.close()
    second = WorkerStore(tmp_path / "rbee.db")
    await second.open()
    assert list(await second.load()) == [replace(ROW, identity=IDENTITY)]
    second.close()


async def test_a_damaged_file_and_one_of_a_newer_version_are_named(tmp_path):
    (tmp_path / "bad.db").write_bytes(b"no database at all " * 100)
    with pytest.raises(DatabaseFailed, match=r"bad\.db.*move it away"):
        await WorkerStore(tmp_path / "bad.db").open()
    newer = sqlite3.connect(tmp_path / "new.db")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(DatabaseFailed, match="newer rbee"):
        await WorkerStore(tmp_path / "new.db").open()


async def test_a_closed_store_says_so(tmp_path):
    with pytest.raises(DatabaseFailed, match="closed"):
        await WorkerStore(tmp_path / "rbee.db").save(ROW)


def test_the_secret_is_made_once_and_is_nobody_elses(tmp_path):
    path = tmp_path / "secret"
    made = secret.load_or_create(path)
    assert len(made) == 32
    assert secret.load_or_create(path) == made
    path.chmod(0o644)
    with pytest.raises(PermissionError, match="chmod 600"):
        secret.load_or_create(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(OSError, match="damaged"):
        secret.load_or_create(path)


def test_a_lock_is_held_by_one_and_free_after_it(tmp_path):
    first = DirectoryLock(tmp_path / "lock")
    with pytest.raises(StateDirectoryInUse, match="pid"):
        DirectoryLock(tmp_path / "lock")
    first.release()
    DirectoryLock(tmp_path / "lock").release()
