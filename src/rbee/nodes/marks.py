"""The marks that every process of a worker carries in its environment, so that none can hide from a sweep."""

import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

import anyio
import psutil

from rbee.nodes.lanes import SCANS
from rbee.nodes.processes import LINUX, read_file

INCARNATION_VARIABLE: Final = "RBEE_WORKER_INCARNATION"
"""``<worker id>:<incarnation>``, carried by the keeper and by all below it."""
KEEPER_VARIABLE: Final = "RBEE_KEEPER"
"""``<pid>:<start time>`` of the keeper, carried by what is below it; the start in clock ticks since boot."""

_EXEC_PATIENCE: Final = 0.5
"""Seconds for a program to be put in place of another; it takes microseconds, or a read of a cold disk."""
_LISTINGS: Final = 10
"""Looks at the list of processes in one scan, on a machine that starts some all the time."""
_PF_EXITING: Final = 0x4
_PF_KTHREAD: Final = 0x200000
_NO_MEANS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors that tell of us, not of the process that was looked at."""


@dataclass(frozen=True, slots=True)
class Marked:
    """A process with one of the marks; the one that it lacks is empty.

    One that is just ending has given up its environment, while it may still give back its memory: it has no marks,
    and ``ending_in`` is the session that it was in; 0 for all others.
    """

    pid: int
    incarnation: str = ""
    keeper: str = ""
    ending_in: int = 0


def mark_of(worker_id: str, incarnation: int) -> str:
    return f"{worker_id}:{incarnation}"


def read(pid: int) -> Marked | None:
    """The marks of one process; None for one without, that is not there, or that we may not look into.

    Blocking. Raises OSError where no descriptor or memory is left to look with: that must not read as no mark.
    """
    if not LINUX:
        return _read_elsewhere(pid)
    data = _file(pid, "environ")
    deadline = 0.0
    while data == b"":
        state = _MemoryLess.read(pid)
        if state is None or state.is_kernel:
            return None
        if state.is_ending:
            return Marked(pid, ending_in=state.session)
        if state.has_environment:
            # It really is empty, or was filled meanwhile: the next look is the last one.
            data = _file(pid, "environ")
            break
        # It has just replaced itself by another program, whose environment the kernel has not put in place yet.
        now = time.monotonic()
        deadline = deadline or now + _EXEC_PATIENCE
        if now > deadline:
            return None
        time.sleep(0.001)
        data = _file(pid, "environ")
    if not data or b"RBEE_" not in data:
        return None
    return _marked(pid, dict(entry.partition("=")[::2] for entry in os.fsdecode(data).split("\0")))


def _file(pid: int, name: str) -> bytes | None:
    try:
        return read_file(f"/proc/{pid}/{name}")
    except ProcessLookupError:
        # So newer kernels say of one without memory; older ones gave an empty file.
        return b""
    except OSError as error:
        if error.errno in _NO_MEANS:
            raise
        return None


class _MemoryLess(NamedTuple):
    """What the stat of a process says whose environment reads empty. Source: proc_pid_stat(5), linux/sched.h."""

    session: int
    is_kernel: bool
    is_ending: bool
    has_environment: bool

    @classmethod
    def read(cls, pid: int) -> Self | None:
        """None for one that is not there or only waits to be reaped."""
        stat = _file(pid, "stat")
        if not stat:
            return None
        fields = stat[stat.rindex(b")") + 2 :].split()
        if fields[0] in (b"Z", b"X"):
            return None
        flags = int(fields[6])
        return cls(int(fields[3]), bool(flags & _PF_KTHREAD), bool(flags & _PF_EXITING), fields[48] != b"0")


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
    """Every process with a mark, and every one that is just ending; we excepted.

    Blocking: it reads the environment of each process there is. Raises OSError where no descriptor is left to look
    with.
    """
    seen = {os.getpid()}
    found: list[Marked] = []
    for _ in range(_LISTINGS):
        # What was born while the others were read may be the child of one that has ended before it was.
        fresh = set(_pids()) - seen
        if not fresh:
            break
        seen |= fresh
        found += [marked for pid in sorted(fresh) if (marked := read(pid)) is not None]
    return found


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()] if LINUX else psutil.pids()


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
                batch.found = await SCANS.run(self._scan)
        return batch.found
