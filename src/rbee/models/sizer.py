"""What is known of a model's files: read once, then remembered for as long as none of them changes."""

import os
from pathlib import Path
from typing import Final, Protocol

import anyio
import anyio.to_thread

from rbee.core.errors import ModelNotFound
from rbee.core.model_header import ModelFacts
from rbee.models.facts import part_paths, read_facts
from rbee.models.library import LOOK_TIMEOUT

MAX_REMEMBERED: Final = 1000
"""Models; one takes a few KiB."""
_MAX_THREADS: Final = 8
"""Of looks that somebody waits for, apart from the threads that everybody else needs. One that was given up keeps its
thread until the disk answers."""


class Headers(Protocol):
    """Where headers are kept over a restart; a loss is no error."""

    async def facts(self, path: str, stamp: str) -> ModelFacts | None: ...

    async def keep_facts(self, path: str, stamp: str, facts: ModelFacts) -> None: ...


class HeaderSizer:
    """Tells what the headers of a model say, from memory, from *kept*, or from its files, in this order."""

    def __init__(self, kept: Headers, look_timeout: float = LOOK_TIMEOUT) -> None:
        self._kept = kept
        self._look_timeout = look_timeout
        self._remembered: dict[str, tuple[str, ModelFacts]] = {}
        self._threads = anyio.CapacityLimiter(_MAX_THREADS)
        self._readers: dict[str, _Turn] = {}

    async def facts(self, path: str) -> ModelFacts:
        """Of the file at *path* and, where it is split, of its other parts. Raises NotAModelFile or ModelNotFound."""
        with anyio.move_on_after(self._look_timeout):
            # The same model asked for many times at once is read once.
            turn = self._readers.setdefault(path, _Turn())
            turn.users += 1
            try:
                async with turn.lock:
                    return await self._facts(path)
            finally:
                turn.users -= 1
                if not turn.users:
                    del self._readers[path]
        raise ModelNotFound(f"The disk of '{path}' did not answer within {self._look_timeout:g} s. Check its mount.")

    async def _facts(self, path: str) -> ModelFacts:
        stamp = await anyio.to_thread.run_sync(_stamp, path, limiter=self._threads, abandon_on_cancel=True)
        remembered = self._remembered.get(path)
        if remembered is not None and remembered[0] == stamp:
            return remembered[1]
        found = await self._kept.facts(path, stamp)
        if found is None:
            found = await anyio.to_thread.run_sync(read_facts, path, limiter=self._threads, abandon_on_cancel=True)
            await self._kept.keep_facts(path, stamp, found)
        self._remembered.pop(path, None)
        self._remembered[path] = (stamp, found)
        if len(self._remembered) > MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        return found


class _Turn:
    """Who reads one model at the moment, and how many wait for that."""

    def __init__(self) -> None:
        self.lock = anyio.Lock()
        self.users = 0


def _stamp(path: str) -> str:
    """Size and time of the last change of every part; it is another one as soon as any of them is another file."""
    return ",".join(_stamp_of(part) for part in part_paths(path))


def _stamp_of(path: str) -> str:
    try:
        found = Path(path).stat()
    except OSError as error:
        # Reading it tells what is wrong, in words for people.
        return os.strerror(error.errno or 0)
    return f"{found.st_size}:{found.st_mtime_ns}"
