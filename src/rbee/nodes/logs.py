"""The log files of workers: read their end, follow them, keep them small."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import anyio

from rbee.nodes.lanes import FILES

_BLOCK: Final = 64 * 1024
_FOLLOW_INTERVAL: Final = 0.25
"""Seconds between two looks at a log that somebody follows."""
MAX_LINES: Final = 10_000


def folders(directory: Path) -> list[Path]:
    """Those of the workers; empty for a *directory* that is not there. Blocking. Raises OSError."""
    try:
        with os.scandir(directory) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def of(folder: Path) -> list[Path]:
    """The logs in the folder of a worker, oldest first; empty for one that is gone. Blocking. Raises OSError."""
    try:
        with os.scandir(folder) as entries:
            found = [Path(entry.path) for entry in entries if entry.name.endswith(".log")]
    except FileNotFoundError:
        return []
    return sorted(found, key=lambda path: int(path.stem) if path.stem.isdecimal() else 0)


def newest(folder: Path) -> Path:
    """The newest log, or the path of one that is never there. Blocking. Raises OSError."""
    return (of(folder) or [folder / "0.log"])[-1]


def tail(path: Path, lines: int) -> list[str]:
    """The last *lines* lines, or as many as can be read; reads no more of the file than it must. Blocking.

    Empty for a file that is not there. Raises OSError where nothing of it can be read.
    """
    return _tail_from(path, lines)[0]


def _tail_from(path: Path, lines: int) -> tuple[list[str], int]:
    blocks: list[bytes] = []
    breaks = 0
    try:
        with path.open("rb") as file:
            end = position = file.seek(0, os.SEEK_END)
            while position > 0 and breaks <= lines:
                start = max(0, position - _BLOCK)
                file.seek(start)
                blocks.append(file.read(position - start))
                breaks += blocks[-1].count(b"\n")
                position = start
    except FileNotFoundError:
        return [], 0
    except OSError:
        if not blocks:
            raise
    found = b"".join(reversed(blocks)).decode("utf-8", "replace").splitlines()
    return (found[-lines:] if lines > 0 else []), end


async def follow(folder: Path, lines: int) -> AsyncIterator[str]:
    """The last *lines* lines of the newest log in *folder*, then each new one.

    Goes on when the file is cut, when a newer one begins, and when it could not be read for a while; ends when the
    folder is gone, or the consumer leaves.
    """
    follower = _Follower(folder, lines)
    while (found := await FILES.run(follower.look)) is not None:
        for line in found:
            yield line
        await anyio.sleep(_FOLLOW_INTERVAL)


class _Follower:
    def __init__(self, folder: Path, lines: int) -> None:
        self._folder = folder
        self._lines = lines
        self._path: Path | None = None
        self._position = 0
        self._rest = b""

    def look(self) -> list[str] | None:
        """The lines that are new; None once the folder is gone. Blocking."""
        if not os.path.isdir(self._folder):
            return None
        try:
            return self._begin() if self._path is None else self._go_on(self._path)
        except OSError:
            # The next look may find a descriptor, or a disk that answers.
            return []

    def _begin(self) -> list[str]:
        path = newest(self._folder)
        found, self._position = _tail_from(path, self._lines)
        self._path = path
        return found

    def _go_on(self, path: Path) -> list[str]:
        fresh, self._position = _read_from(path, self._position)
        *whole, self._rest = (self._rest + fresh).split(b"\n")
        if not fresh and (latest := newest(self._folder)) != path:
            self._path, self._position, self._rest = latest, 0, b""
        return [line.decode("utf-8", "replace") for line in whole]


def _read_from(path: Path, position: int) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            # A file that was cut is shorter than what was read of it.
            file.seek(position if position <= end else 0)
            fresh = file.read(_BLOCK * 16)
            return fresh, file.tell()
    except FileNotFoundError:
        return b"", 0


def cut(path: Path, max_bytes: int) -> bool:
    """Cut a file that is over *max_bytes* to its second half, from the start of a line. Blocking.

    Its writer has it open for append, so what it writes next lands behind what is kept; lines written within the
    moment of the cut can be lost. True when it was cut.
    """
    try:
        with path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size <= max_bytes:
                return False
            file.seek(size - max_bytes // 2)
            file.readline()
            kept = file.read()
            file.seek(0)
            file.write(kept)
            file.truncate()
    except FileNotFoundError:
        return False
    return True
