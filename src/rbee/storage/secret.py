"""The secret from which worker tokens are made: one a state directory, made once, readable by its owner alone."""

import os
import secrets
from pathlib import Path
from typing import Final

_LENGTH: Final = 32


def load_or_create(path: Path) -> bytes:
    """32 bytes. Raises OSError, among others for a file that others may read or that is damaged."""
    if path.exists():
        return _load(path)
    # Whole or not at all: a crash in between must not leave a file that looks damaged. The caller holds the lock.
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    fresh = secrets.token_bytes(_LENGTH)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(fresh)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    _flush_directory(path.parent)
    return fresh


def _flush_directory(path: Path) -> None:
    """A power cut must not take back the name: workers would live on with tokens that nobody takes."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _load(path: Path) -> bytes:
    if path.stat().st_mode & 0o077:
        raise PermissionError(f"{path} can be read by others; run: chmod 600 {path}")
    kept = path.read_bytes()
    if len(kept) != _LENGTH:
        raise OSError(f"{path} is damaged; remove it and start again (workers of the last hive will end themselves).")
    return kept
