"""The same contract on the fake store and on the real one, and what the real one does with bad files."""

from dataclasses import replace

import pytest

from rbee.core.errors import StateDirectoryInUse
from rbee.core.exits import Exit, ExitReason
from rbee.core.launch import Ending, ProcessIdentity, StoredWorker
from rbee.core.worker import Restart, WorkerSpec
from rbee.storage import secret
from rbee.storage.lock import DirectoryLock
from rbee.storage.workers import DatabaseFailed, WorkerStore
from rbee.testing import FakeStore

pytestmark = pytest.mark.anyio
SPEC = WorkerSpec("w-1", "synthetic:x", engine_args=("--load-seconds", "1"), restart=Restart.NEVER, idle_timeout=1.5)
ROW = StoredWorker(SPEC, 1)
IDENTITY = ProcessIdentity(77, 123456, "boot")
LAST_EXIT = Exit(ExitReason.CRASHED, signal_number=9, message="out of \u2028 words", may_be_oom=True)
FULL = StoredWorker(
    SPEC,
    3,
    IDENTITY,
    "http://127.0.0.1:8081",
    78,
    4,
    2,
    "2026-11-24T12:00:00+00:00",
    Ending.CONDEMNED,
    LAST_EXIT,
)


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
    assert await real.open() is None
    yield real
    real.close()


async def test_what_is_saved_is_loaded(store):
    await store.save(ROW)
    assert list(await store.load()) == [ROW]


async def test_a_row_is_replaced_as_a_whole(store):
    await store.save(ROW)
    await store.save(replace(ROW, identity=IDENTITY))
    assert list(await store.load()) == [replace(ROW, identity=IDENTITY)]
    await store.save(FULL)
    assert list(await store.load()) == [FULL]
    await store.save(replace(ROW, incarnation=4))
    assert list(await store.load()) == [replace(ROW, incarnation=4)]


async def test_what_is_forgotten_is_gone_and_may_be_forgotten_again(store):
    await store.save(ROW)
    await store.save(StoredWorker(replace(SPEC, worker_id="w-2"), 1))
    await store.forget("w-1")
    await store.forget("w-1")
    assert [row.spec.worker_id for row in await store.load()] == ["w-2"]


async def test_it_survives_being_closed_and_opened(tmp_path):
    first = WorkerStore(tmp_path / "rbee.db")
    await first.open()
    await first.save(FULL)
    first.close()
    second = WorkerStore(tmp_path / "rbee.db")
    assert await second.open() is None
    assert list(await second.load()) == [FULL]
    second.close()


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
