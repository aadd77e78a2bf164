"""Finds a database that cannot be read, and keeps it under another name so that nothing of it is lost."""

import contextlib
import sqlite3
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from rbee.storage import rows

BUSY_TIMEOUT: Final = 5.0
"""Seconds to wait for somebody else's lock on the file."""

UNWRITTEN: Final = "ro&immutable=1"
"""Mode to open a file that nobody writes to: not even the -shm is made, which a full disk has no room for."""

SUFFIXES: Final = ("", "-wal", "-shm", "-journal")
"""SQLite finds the parts of a database by these; the main file comes first, for no part is read without it."""

OF_CONTENT: Final = (
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_SCHEMA,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_FORMAT,
    sqlite3.SQLITE_NOTADB,
)
"""Codes by which a plain reading says that the content is not what it should be; all others speak of the system."""

_OF_SPACE: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
"""What SQLite says to a full disk: FULL for the file and its -wal, IOERR for the -shm."""


@dataclass(frozen=True, slots=True)
class SetAside:
    """*path*: where the unreadable file is now. *reason*: one sentence for people, with both names."""

    path: Path
    reason: str


def what_is_wrong(path: Path) -> str | None:
    """Why this version cannot read the file; None where it can, or where there is none.

    Raises sqlite3.Error for what says nothing about the content: permissions, a full disk, another's lock.
    """
    if not path.exists():
        return None
    try:
        # Read only: a connection that may write would, at its end, put the -wal into a file that may be damaged.
        return _judge(path, "ro")
    except sqlite3.OperationalError as error:
        if may_read_unwritten(path, error):
            return _judge(path, UNWRITTEN)
        if code_of(error) != sqlite3.SQLITE_READONLY:
            raise
        # Whoever wrote it last was killed in the middle: SQLite has to roll back first.
        return _judge(path, "rw")


def keep(path: Path, wrong: str, now: datetime) -> SetAside:
    """Rename the file and its parts; no earlier one is overwritten. Raises OSError."""
    stem = f"{path}.unreadable-{now:%Y%m%dT%H%M%SZ}"
    name, number = stem, 1
    while any(Path(name + suffix).exists() for suffix in SUFFIXES):
        number += 1
        name = f"{stem}-{number}"
    for suffix in SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(name + suffix)
    kept = Path(name)
    reason = (
        f"{path} cannot be read ({wrong}); it is kept as {kept.name}, and the hive starts with an empty database and "
        "what the live workers announce."
    )
    return SetAside(kept, reason)


def may_read_unwritten(path: Path, error: Exception) -> bool:
    """Whether *error* is of a full disk, and all that was committed stands in the main file."""
    if not isinstance(error, sqlite3.Error) or code_of(error) not in _OF_SPACE:
        return False
    parts = (Path(f"{path}{suffix}") for suffix in ("-wal", "-journal"))
    return not any(part.exists() and part.stat().st_size for part in parts)


def reader(path: Path, mode: str) -> "contextlib.closing[sqlite3.Connection]":
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return contextlib.closing(sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT))


def _judge(path: Path, mode: str) -> str | None:
    with reader(path, mode) as db:
        try:
            return _wrong_content(db)
        except rows.UnreadableRow as error:
            return str(error)
        except sqlite3.Error as error:
            code = code_of(error)
            if code is not None and code not in OF_CONTENT:
                raise
            return str(error)  # without a code it is Python's own: text that is no UTF-8


def _wrong_content(db: sqlite3.Connection) -> str | None:
    (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        return " ".join(str(found).split())
    version = rows.version_of(db)
    if version > rows.SCHEMA_VERSION:
        return f"a newer rbee wrote it: schema {version}, this one knows {rows.SCHEMA_VERSION}"
    if version < 0:
        return f"its schema is {version}, which no rbee wrote"
    if version > 0:
        rows.read_all(db, version)
    elif db.execute("SELECT 1 FROM sqlite_schema").fetchone():
        return "it holds tables of something else"
    return None


def code_of(error: sqlite3.Error) -> int | None:
    """The primary result code: the lowest byte of the extended one (sqlite.org/rescode.html)."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
