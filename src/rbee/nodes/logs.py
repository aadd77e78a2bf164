"""The log files of workers: read their end, follow them, keep them small."""

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import anyio

from rbee.nodes.lanes import FILES

_BLOCK: Final = 64 * 1024
_FOLLOW_INTERVAL: Final = 0.25
"""Seconds between two looks at a log that somebody follows."""
MAX_LINES: Final = 10_000


def files(folder: Path) -> list[Path]:
    """The logs in a folder, in no order; none where it cannot be read, or is no folder. Blocking.

    ``Path.glob`` is no use here: before Python 3.13 it raises for a folder that is removed while it looks.
    """
    try:
        return [folder / name for name in os.listdir(folder) if name.endswith(".log")]
    except OSError:
        return []


def tail(path: Path, lines: int) -> list[str]:
    """The last *lines* lines; reads no more of the file than it must. Empty for a file that is not there. Blocking."""
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
    found = b"".join(reversed(blocks)).decode("utf-8", "replace").splitlines()
    return (found[-lines:] if lines > 0 else []), end


async def follow(newest: Callable[[], Path], lines: int) -> AsyncIterator[str]:
    """The last *lines* lines of the newest log, then each new one.

    Goes on when the file is cut and when a newer one begins (*newest* is asked at each look); ends when the folder of
    the logs is gone, or the consumer leaves.
    """
    path = newest()
    first, position = await FILES.run(_tail_from, path, lines)
    for line in first:
        yield line
    rest = b""
    while path.parent.is_dir():
        await anyio.sleep(_FOLLOW_INTERVAL)
        fresh, position = await FILES.run(_read_from, path, position)
        whole = (rest + fresh).split(b"\n")
        rest = whole.pop()
        for found in whole:
            yield found.decode("utf-8", "replace")
        if not fresh and (latest := newest()) != path:
            path, position, rest = latest, 0, b""


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
