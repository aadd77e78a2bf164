"""The log files of workers: read their end, follow them, keep them small."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import anyio

_BLOCK: Final = 64 * 1024
_FOLLOW_INTERVAL: Final = 0.25
"""Seconds between two looks at a log that somebody follows."""
MAX_LINES: Final = 10_000


def tail(path: Path, lines: int) -> list[str]:
    """The last *lines* lines; reads no more of the file than it must. Empty for a file that is not there. Blocking."""
    return _tail_from(path, lines)[0]


def _tail_from(path: Path, lines: int) -> tuple[list[str], int]:
    try:
        with path.open("rb") as file:
            end = position = file.seek(0, os.SEEK_END)
            data = b""
            while position > 0 and data.count(b"\n") <= lines:
                position = max(0, position - _BLOCK)
                file.seek(position)
                data = file.read(end - position)
    except FileNotFoundError:
        return [], 0
    found = data.decode("utf-8", "replace").splitlines()
    return (found[-lines:] if lines > 0 else []), end


async def follow(path: Path, lines: int) -> AsyncIterator[str]:
    """The last *lines* lines, then each new one; survives that the file is cut. Ends when the consumer leaves."""
    first, position = _tail_from(path, lines)
    for line in first:
        yield line
    rest = b""
    while True:
        await anyio.sleep(_FOLLOW_INTERVAL)
        fresh, position = _read_from(path, position)
        whole = (rest + fresh).split(b"\n")
        rest = whole.pop()
        for found in whole:
            yield found.decode("utf-8", "replace")


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
