"""The marks that every process of a worker carries in its environment, so that none can hide from a sweep."""

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import anyio
import anyio.to_thread
import psutil

from rbee.nodes.processes import LINUX

INCARNATION_VARIABLE: Final = "RBEE_WORKER_INCARNATION"
"""``<worker id>:<incarnation>``, carried by the keeper and by all below it."""
KEEPER_VARIABLE: Final = "RBEE_KEEPER"
"""``<pid>:<start time>`` of the keeper, carried by what is below it; the start in clock ticks since boot."""

_NO_DESCRIPTOR: Final = (errno.EMFILE, errno.ENFILE)


@dataclass(frozen=True, slots=True)
class Marked:
    """A process with one of the marks; the one that it lacks is empty."""

    pid: int
    incarnation: str
    keeper: str


def mark_of(worker_id: str, incarnation: int) -> str:
    return f"{worker_id}:{incarnation}"


def read(pid: int) -> Marked | None:
    """The marks of one process; None for one without, that is not there, or that we may not look into.

    Raises OSError where no descriptor is left to look with: that must not read as no mark.
    """
    if not LINUX:
        return _read_elsewhere(pid)
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            data = file.read()
    except OSError as error:
        if error.errno in _NO_DESCRIPTOR:
            raise
        return None
    if not data or b"RBEE_" not in data:
        return None
    entries = dict(entry.partition("=")[::2] for entry in os.fsdecode(data).split("\0"))
    return _marked(pid, entries)


def _marked(pid: int, environ: Mapping[str, str]) -> Marked | None:
    incarnation, keeper = environ.get(INCARNATION_VARIABLE, ""), environ.get(KEEPER_VARIABLE, "")
    return Marked(pid, incarnation, keeper) if incarnation or keeper else None


def _read_elsewhere(pid: int) -> Marked | None:
    try:
        environ = psutil.Process(pid).environ()
    except (OSError, psutil.Error):
        return None
    return _marked(pid, environ)


def scan() -> list[Marked]:
    """Every process with a mark, we excepted. Blocking: it reads the environment of each process there is.

    Raises OSError where no descriptor is left to look with.
    """
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()] if LINUX else psutil.pids()
    return [found for pid in pids if pid != os.getpid() and (found := read(pid)) is not None]


def in_our_pid_namespace(pid: int) -> bool:
    """Whether the pids that it knows are those that we know. In a container of its own they are not."""
    if not LINUX:
        return True
    try:
        return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink("/proc/self/ns/pid")
    except OSError:
        return False


class _Batch:
    found: Sequence[Marked] | None = None


class SharedScan:
    """One scan serves all who wait for one; each is served by a scan that began after it asked."""

    def __init__(self, scan: Callable[[], Sequence[Marked]] = scan) -> None:
        self._scan = scan
        self._waiting = _Batch()
        self._scanning = anyio.Lock()

    async def __call__(self) -> Sequence[Marked]:
        """Raises OSError as ``scan`` does."""
        batch = self._waiting
        async with self._scanning:
            if batch.found is None:
                self._waiting = _Batch()
                batch.found = await anyio.to_thread.run_sync(self._scan)
        return batch.found
