"""The workers as they survive the hive: one row each, committed before the fork and again after it."""

import dataclasses
import json
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import anyio.to_thread

from rbee.core.launch import ProcessIdentity, StoredWorker
from rbee.core.worker import Restart, WorkerSpec

SCHEMA_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS workers (
    worker_id TEXT PRIMARY KEY,
    incarnation INTEGER NOT NULL,
    spec TEXT NOT NULL,
    pid INTEGER,
    start_time INTEGER,
    boot_id TEXT
) STRICT
"""
_UPSERT: Final = """
INSERT INTO workers (worker_id, incarnation, spec, pid, start_time, boot_id) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (worker_id) DO UPDATE SET incarnation = excluded.incarnation, spec = excluded.spec,
    pid = excluded.pid, start_time = excluded.start_time, boot_id = excluded.boot_id
"""
_ALL: Final = "SELECT spec, incarnation, pid, start_time, boot_id FROM workers ORDER BY worker_id"
T = TypeVar("T")


class DatabaseFailed(OSError):
    """SQLite refused: a full disk, a damaged file, or one written by a newer rbee."""


class WorkerStore:
    """*path*'s directory must exist. Every call runs in a thread: a slow disk must not stop the loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Raises DatabaseFailed, which names the file and what to do with it."""
        await anyio.to_thread.run_sync(self._open)

    async def save(self, row: StoredWorker) -> None:
        await self._run(lambda db: db.execute(_UPSERT, _values(row)))

    async def forget(self, worker_id: str) -> None:
        await self._run(lambda db: db.execute("DELETE FROM workers WHERE worker_id = ?", (worker_id,)))

    async def load(self) -> Sequence[StoredWorker]:
        try:
            return await self._run(lambda db: [_row(*found) for found in db.execute(_ALL)])
        except (ValueError, KeyError, TypeError) as error:
            raise DatabaseFailed(
                f"{self._path} holds a worker that this version cannot read ({error!r}); move it away to start with an "
                "empty one."
            ) from error

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _open(self) -> None:
        try:
            db = sqlite3.connect(self._path, timeout=5.0, isolation_level=None, check_same_thread=False)
            # A commit survives a crash of the hive without a flush; only a power cut may lose the last ones, and
            # then no worker is left either.
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                db.close()
                raise DatabaseFailed(f"{self._path} was written by a newer rbee (schema {version}); move it away.")
            db.execute(_SCHEMA)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        except sqlite3.Error as error:
            raise DatabaseFailed(f"{self._path}: {error}; move it away to start with an empty one.") from error
        self._connection = db

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await anyio.to_thread.run_sync(self._locked, work)

    def _locked(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            if self._connection is None:
                raise DatabaseFailed(f"{self._path} is closed.")
            try:
                return work(self._connection)
            except sqlite3.Error as error:
                raise DatabaseFailed(f"{self._path}: {error}") from error


def _values(row: StoredWorker) -> tuple[object, ...]:
    identity = row.identity
    known = (identity.pid, identity.start_time, identity.boot_id) if identity else (None, None, None)
    return (row.spec.worker_id, row.incarnation, json.dumps(dataclasses.asdict(row.spec)), *known)


def _row(spec: str, incarnation: int, pid: int | None, start_time: int | None, boot_id: str | None) -> StoredWorker:
    fields = json.loads(spec)
    fields["engine_args"] = tuple(fields["engine_args"])
    fields["restart"] = Restart(fields["restart"])
    identity = None
    if pid is not None and start_time is not None and boot_id is not None:
        identity = ProcessIdentity(pid, start_time, boot_id)
    return StoredWorker(WorkerSpec(**fields), incarnation, identity)
