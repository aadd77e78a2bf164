"""The workers as they survive the hive: one row each, committed before the fork and again after it."""

import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
import structlog

from rbee.core.launch import StoredWorker
from rbee.storage import aside, rows
from rbee.storage.aside import SetAside

T = TypeVar("T")
log = structlog.get_logger(__name__)


class DatabaseFailed(OSError):
    """SQLite refused for a reason that is not in the file: a full disk, no permission, somebody else's lock."""


class WorkerStore:
    """*path*'s directory must exist. Every call runs in a thread: a slow disk must not stop the loop.

    One at a time, and those that wait are tasks: as threads they would take all that there are from everybody else.
    """

    def __init__(self, path: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._path = path
        self._now = now
        self._one = anyio.CapacityLimiter(1)
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._read_only: Sequence[StoredWorker] | None = None

    async def open(self) -> SetAside | None:
        """Open the database, after which ``load`` finds only what it can read.

        A file that is damaged, of a newer version, or with a row that this version does not know is renamed, an empty
        one opened instead, and what was done returned. With a full disk the rows are read all the same, for the hive
        has to adopt; every later call that writes tries to open the file again. Raises DatabaseFailed, which names the
        file.
        """
        return await anyio.to_thread.run_sync(self._open, limiter=self._one)

    async def save(self, row: StoredWorker) -> None:
        """Put *row* in place of the one with its id, all of it. Raises DatabaseFailed."""
        await self._write(lambda db: db.execute(rows.UPSERT, rows.values_of(row)))

    async def forget(self, worker_id: str) -> None:
        await self._write(lambda db: db.execute("DELETE FROM workers WHERE worker_id = ?", (worker_id,)))

    async def load(self) -> Sequence[StoredWorker]:
        """All rows, by id. Raises DatabaseFailed."""
        return await anyio.to_thread.run_sync(self._load, limiter=self._one)

    def close(self) -> None:
        with self._lock:
            self._read_only = None
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _open(self) -> SetAside | None:
        kept, reason = None, ""
        try:
            if wrong := aside.what_is_wrong(self._path):
                kept = aside.keep(self._path, wrong, self._now())
            self._connection = _connect(self._path)
        except (sqlite3.Error, OSError) as error:
            self._read_only = None if kept else self._read_without_writing(error)
            if self._read_only is None:
                before = "" if kept is None else f" Before that: {kept.reason}"
                raise DatabaseFailed(f"The database {self._path} cannot be opened: {error}.{before}") from error
            reason = str(error)
        if self._read_only is not None:
            log.error("database_not_writable", path=str(self._path), rows=len(self._read_only), reason=reason)
        return kept

    def _read_without_writing(self, error: Exception) -> Sequence[StoredWorker] | None:
        """The rows on a disk that is full; None where it is not that, or they cannot be had so."""
        if not aside.may_read_unwritten(self._path, error):
            return None
        try:
            with aside.reader(self._path, aside.UNWRITTEN) as db:
                version = rows.version_of(db)
                return rows.read_all(db, version) if version else None
        except sqlite3.Error:
            return None

    async def _write(self, work: Callable[[sqlite3.Connection], object]) -> None:
        await anyio.to_thread.run_sync(self._locked, work, limiter=self._one)

    def _load(self) -> Sequence[StoredWorker]:
        if self._read_only is not None:
            return self._read_only
        return self._locked(rows.read_all)

    def _locked(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            try:
                return work(self._writable())
            except (sqlite3.Error, OSError) as error:
                raise DatabaseFailed(f"{self._path}: {error}") from error

    def _writable(self) -> sqlite3.Connection:
        if self._connection is None:
            if self._read_only is None:
                raise DatabaseFailed("it is closed")
            self._connection = _connect(self._path)
            self._read_only = None
            log.info("database_writable_again", path=str(self._path))
        return self._connection


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=aside.BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    try:
        # A commit survives a crash of the hive without a flush; only a power cut may lose the last ones, and
        # then no worker is left either.
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        rows.migrate(db)
        # SQLite opens such a file to be read, and would refuse the first worker. Nothing is written to find out: with
        # a full disk the hive still has to adopt.
        if not os.access(path, os.W_OK):
            raise PermissionError("it is readonly")
    except (sqlite3.Error, OSError):
        db.close()
        raise
    return db
