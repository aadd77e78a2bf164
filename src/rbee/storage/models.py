"""What was learnt of models: their headers, and the most that they took. Losing it costs a second look."""

import sqlite3
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

import anyio
import anyio.to_thread
import msgspec
import structlog

from rbee import __version__
from rbee.core.claims import Peak
from rbee.core.model_header import ModelFacts
from rbee.storage import aside

T = TypeVar("T")
log = structlog.get_logger(__name__)

SCHEMA_VERSION: Final = 1
MAX_ROWS: Final = 10_000
"""Of each table; the ones that were written longest ago go."""
_BUSY_TIMEOUT: Final = 1.0
"""Seconds; whoever waits here wants to start a worker, and can do without."""
_PATIENCE: Final = 3.0
"""Seconds that anybody waits for a call."""
_TABLES: Final = (
    "CREATE TABLE headers (path TEXT PRIMARY KEY, stamp TEXT NOT NULL, facts TEXT NOT NULL) STRICT",
    "CREATE TABLE peaks (key TEXT PRIMARY KEY, peak TEXT NOT NULL) STRICT",
)


class _Unreadable(ValueError):
    """A file that this version did not write, or a row in it."""


class ModelStore:
    """A small cache in one file. No call raises for what is wrong with the file or its disk.

    A file that is damaged, or of another version, is made anew; with a disk that cannot be written everything is
    forgotten. Either is logged once. Every call runs in a thread, one at a time. Headers that another *version* has
    read are not known: it may have understood them otherwise.
    """

    def __init__(self, path: Path, version: str = __version__) -> None:
        self._path = path
        self._version = version
        self._one = anyio.CapacityLimiter(1)
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._is_closed = False
        self._is_failing = False

    async def load(self) -> Mapping[str, Peak]:
        """The most that models were seen to take, by key."""
        return await self._run(_read_peaks, {})

    async def save(self, key: str, peak: Peak) -> None:
        await self._run(lambda db: _put(db, "peaks", key, _json(peak)), None)

    async def forget(self, key: str) -> None:
        """What was seen under *key* counts no more."""
        await self._run(lambda db: db.execute("DELETE FROM peaks WHERE key = ?", (key,)), None)

    async def facts(self, path: str, stamp: str) -> ModelFacts | None:
        """What was kept of the file at *path*, if it still has this *stamp*."""
        return await self._run(lambda db: _read_facts(db, path, self._stamp(stamp)), None)

    async def keep_facts(self, path: str, stamp: str, facts: ModelFacts) -> None:
        await self._run(lambda db: _put(db, "headers", path, self._stamp(stamp), _json(facts)), None)

    def _stamp(self, stamp: str) -> str:
        return f"{self._version} {stamp}"

    def close(self) -> None:
        """Nothing is kept from now on. A call that hangs is left to itself: the hive's end does not wait for it."""
        self._is_closed = True
        if self._lock.acquire(timeout=_PATIENCE):
            self._disconnect()
            self._lock.release()

    async def _run(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        # A cache is not worth waiting for: while its disk hangs it is an empty one.
        with anyio.move_on_after(_PATIENCE):
            return await anyio.to_thread.run_sync(
                self._locked, work, otherwise, limiter=self._one, abandon_on_cancel=True
            )
        return otherwise

    def _locked(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        if not self._lock.acquire(timeout=_PATIENCE):
            return otherwise  # One that hangs has it; nobody queues up behind that for ever.
        try:
            if self._is_closed:
                return otherwise
            done = work(self._connected())
            self._is_failing = False
        except (sqlite3.Error, OSError, _Unreadable) as error:
            self._give_up(error)
            return otherwise
        finally:
            self._lock.release()
        return done

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = _connect(self._path)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _give_up(self, error: Exception) -> None:
        """Remove a file that cannot be read; leave one alone whose disk is the matter."""
        self._disconnect()
        is_content = isinstance(error, _Unreadable) or _is_of_content(error)
        if is_content:
            try:
                for suffix in aside.SUFFIXES:
                    Path(f"{self._path}{suffix}").unlink(missing_ok=True)
            except OSError as why:
                is_content, error = False, why
        if not self._is_failing:
            event = "model_store_made_anew" if is_content else "model_store_unusable"
            log.warning(event, path=str(self._path), reason=str(error))
        self._is_failing = not is_content


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        _make_tables(db)
    except (sqlite3.Error, _Unreadable):
        db.close()
        raise
    return db


def _make_tables(db: sqlite3.Connection) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version not in (0, SCHEMA_VERSION):
        raise _Unreadable(f"its schema is {version}, this version knows {SCHEMA_VERSION}")
    if version == 0:
        db.execute("BEGIN IMMEDIATE")
        for statement in _TABLES:
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.execute("COMMIT")


def _put(db: sqlite3.Connection, table: str, *values: str) -> None:
    # A row that is replaced gets a new number, so numbers tell which was written longest ago.
    row = [_storable(value) for value in values]
    db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * len(row))})", row)
    db.execute(
        f"DELETE FROM {table} WHERE rowid <= (SELECT rowid FROM {table} ORDER BY rowid DESC LIMIT 1 OFFSET ?)",
        (MAX_ROWS,),
    )


def _read_peaks(db: sqlite3.Connection) -> dict[str, Peak]:
    return {key: _parsed(text, Peak) for key, text in db.execute("SELECT key, peak FROM peaks")}


def _read_facts(db: sqlite3.Connection, path: str, stamp: str) -> ModelFacts | None:
    found = db.execute("SELECT facts FROM headers WHERE path = ? AND stamp = ?", (_storable(path), stamp)).fetchone()
    return None if found is None else _parsed(found[0], ModelFacts)


def _storable(text: str) -> str:
    """A path may hold bytes that are no UTF-8, which SQLite takes none of."""
    return text.encode("utf-8", "backslashreplace").decode()


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _parsed(text: str, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise _Unreadable(f"it holds a row that cannot be read: {error}") from None


def _is_of_content(error: Exception) -> bool:
    """Whether *error* is of what stands in the file; an error without a code is Python's own, of text in it."""
    return isinstance(error, sqlite3.Error) and aside.code_of(error) in (None, *aside.OF_CONTENT)
