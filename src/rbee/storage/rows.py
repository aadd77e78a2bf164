"""The table of workers: its versions, and how a worker becomes a row and again a worker."""

import dataclasses
import json
import sqlite3
from typing import Any, Final

import msgspec

from rbee.core.launch import StoredWorker
from rbee.core.worker import WorkerSpec

SCHEMA_VERSION: Final = 4
_TABLE: Final = """
CREATE TABLE workers (
    worker_id TEXT PRIMARY KEY,
    incarnation INTEGER NOT NULL,
    spec TEXT NOT NULL,
    pid INTEGER,
    start_time INTEGER,
    boot_id TEXT
) STRICT
"""
_MIGRATIONS: Final = (
    (_TABLE,),
    (
        "ALTER TABLE workers ADD COLUMN url TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE workers ADD COLUMN engine_pid INTEGER",
        "ALTER TABLE workers ADD COLUMN slots INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE workers ADD COLUMN restart_count INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE workers ADD COLUMN started_at TEXT NOT NULL DEFAULT ''",
    ),
    (
        "ALTER TABLE workers ADD COLUMN ending TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE workers ADD COLUMN last_exit TEXT NOT NULL DEFAULT ''",
    ),
    ("ALTER TABLE workers ADD COLUMN claim TEXT NOT NULL DEFAULT ''",),
)
"""Statements that lead from the version of their index to the next; a new file goes through all."""

_IDENTITY: Final = ("pid", "start_time", "boot_id")
_ADDED: Final = ("url", "engine_pid", "slots", "restart_count", "started_at")
_OF_ITS_END: Final = ("ending", "last_exit")
_COLUMNS: Final = {
    1: ("worker_id", "incarnation", "spec", *_IDENTITY),
    2: ("worker_id", "incarnation", "spec", *_IDENTITY, *_ADDED),
    3: ("worker_id", "incarnation", "spec", *_IDENTITY, *_ADDED, *_OF_ITS_END),
    4: ("worker_id", "incarnation", "spec", *_IDENTITY, *_ADDED, *_OF_ITS_END, "claim"),
}
_SPEC_FIELDS: Final = frozenset(field.name for field in dataclasses.fields(WorkerSpec))

_PRESENT: Final = _COLUMNS[SCHEMA_VERSION]
UPSERT: Final = (
    f"INSERT INTO workers ({', '.join(_PRESENT)}) VALUES ({', '.join('?' * len(_PRESENT))}) "
    f"ON CONFLICT (worker_id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _PRESENT[1:])}"
)


class UnreadableRow(ValueError):
    """A row whose content this version does not know."""


def version_of(db: sqlite3.Connection) -> int:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return int(version)


def migrate(db: sqlite3.Connection) -> None:
    """Bring *db* (in autocommit mode) to the present version, whole or not at all. Raises sqlite3.Error."""
    db.execute("BEGIN IMMEDIATE")
    try:
        version = version_of(db)
        for statements in _MIGRATIONS[version:]:
            for statement in statements:
                db.execute(statement)
        if version != SCHEMA_VERSION:
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.execute("COMMIT")
    except sqlite3.Error:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def read_all(db: sqlite3.Connection, version: int = SCHEMA_VERSION) -> list[StoredWorker]:
    """Every worker in a table of *version*, by id. Raises UnreadableRow, and sqlite3.Error."""
    names = _COLUMNS[version]
    found = db.execute(f"SELECT {', '.join(names)} FROM workers ORDER BY worker_id")
    return [_worker(dict(zip(names, values, strict=True))) for values in found]


def values_of(row: StoredWorker) -> tuple[object, ...]:
    """What UPSERT takes."""
    identity = row.identity
    known = (identity.pid, identity.start_time, identity.boot_id) if identity else (None, None, None)
    added = (row.url, row.engine_pid, row.slots, row.restart_count, row.started_at)
    last_exit = json.dumps(dataclasses.asdict(row.last_exit)) if row.last_exit else ""
    claim = json.dumps(dataclasses.asdict(row.claim)) if row.claim else ""
    rest = (*known, *added, row.ending or "", last_exit, claim)
    return (row.spec.worker_id, row.incarnation, json.dumps(dataclasses.asdict(row.spec)), *rest)


def _worker(columns: dict[str, Any]) -> StoredWorker:
    worker_id = columns.pop("worker_id")
    identity = {name: columns.pop(name) for name in _IDENTITY}
    try:
        spec = json.loads(columns["spec"])
        if not isinstance(spec, dict):
            raise UnreadableRow(f"the worker {worker_id!r} is described by no JSON object")
        if unknown := spec.keys() - _SPEC_FIELDS:
            raise UnreadableRow(f"the worker {worker_id!r} has {', '.join(sorted(unknown))}, unknown to this version")
        columns |= {"spec": spec, "identity": None if None in identity.values() else identity}
        columns["ending"] = columns.get("ending") or None
        columns["last_exit"] = json.loads(columns.get("last_exit") or "null")
        columns["claim"] = json.loads(columns.get("claim") or "null")
        worker = msgspec.convert(columns, StoredWorker)
    except (msgspec.ValidationError, json.JSONDecodeError, TypeError, RecursionError) as error:
        raise UnreadableRow(f"the worker {worker_id!r} cannot be read: {error}") from error
    if worker.spec.worker_id != worker_id:
        raise UnreadableRow(f"the worker {worker_id!r} is described as {worker.spec.worker_id!r}")
    return worker
