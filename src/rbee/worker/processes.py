"""Starts the engine so that it cannot outlive the keeper, and leaves nothing of it behind."""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_LINUX: Final = sys.platform == "linux"
_LAUNCHER: Final = str(Path(__file__).with_name("launcher.py"))
_PR_SET_CHILD_SUBREAPER: Final = 36
_RESET: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE)
_OOM_SCORE: Final = 500
"""Of proc_pid_oom_score_adj(5): half of all memory is added to what the kernel thinks that a process uses."""
_FIRST_TO_GO: Final = 1000
_LEFTOVER_GRACE: Final = 2.0
"""Seconds in which a killed descendant must be gone; one in an uninterruptible wait may take longer."""

KEEPER_MARK: Final = "RBEE_KEEPER"
"""Names one keeper process, not one incarnation: two hives may number their workers alike."""


def become_subreaper() -> None:
    """Let orphaned descendants become our children, where the system can (Linux)."""
    if _LINUX:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def be_killed_before_the_hive() -> None:
    """Have the kernel's out-of-memory killer choose us, and what we start, rather than who started us (Linux)."""
    path = Path("/proc/self/oom_score_adj")
    # Where that may not be (no /proc, a user that may not) the kernel takes the largest, which no hive is.
    with contextlib.suppress(OSError, ValueError):
        inherited = int(path.read_text())
        path.write_text(str(min(_FIRST_TO_GO, max(_OOM_SCORE, inherited + _OOM_SCORE))))


def keeper_mark() -> str:
    """The value of KEEPER_MARK: this process and no later one of its number."""
    return f"{os.getpid()}:{start_ticks(os.getpid())}"


def start_ticks(pid: int) -> int:
    """When *pid* started, in clock ticks since the boot (field 22 of its stat); 0 where that cannot be read."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[19])


class EngineProcess:
    """One engine, by its pid. Only the thread that starts it may: the parent-death signal follows that thread."""

    def __init__(self, argv: list[str], environment: dict[str, str], stderr: int) -> None:
        """Raises OSError where the launcher itself cannot be started."""
        self._lease: tuple[int, int] | None = None if _LINUX else os.pipe()
        lease = "-" if self._lease is None else str(self._lease[0])
        if self._lease is not None:
            os.set_inheritable(self._lease[0], True)
        command = [sys.executable, "-I", "-S", _LAUNCHER, str(os.getpid()), lease, "--", *argv]
        self.pid = os.posix_spawn(
            sys.executable,
            command,
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, stderr, 2),
            ],
            setsigmask=[],
            setsigdef=_RESET,
            setpgroup=_group(),
        )
        if self._lease is not None:
            os.close(self._lease[0])

    def signal(self, number: signal.Signals) -> None:
        """Send *number*. Its pid stays its own until we have reaped it, so this can hit nobody else."""
        os.kill(self.pid, number)


def _group() -> int:
    """The process group for the engine; 0 is a new one.

    Under a hive the keeper leads a session and the hive ends that whole group: the engine stays in it. By hand the
    terminal sends Ctrl+C to the keeper's group: the engine leaves it, or it would end before it is drained.
    """
    return os.getpgrp() if os.getsid(0) == os.getpid() else 0


def reap() -> Iterator[tuple[int, int]]:
    """(pid, exit code, negative for a signal) of every child that has ended, adopted ones too."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def end_descendants(mark: str) -> list[int]:
    """Kill and reap what is left of the engine: our children, adopted ones too, and whatever carries *mark* in its
    environment. Returns the pids that would not go within two seconds."""
    deadline = time.monotonic() + _LEFTOVER_GRACE
    while True:
        for _ in reap():
            pass
        left = sorted({*_children(os.getpid()), *_marked(mark)})
        if not left or time.monotonic() >= deadline:
            return left
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)  # a killed process is gone within a scheduler's turn; there is no one event for all of them


def resident_bytes(pid: int) -> int | None:
    """Resident memory of *pid* and all below it; None where that cannot be read."""
    total = 0
    for member in _tree(pid):
        try:
            total += int(Path(f"/proc/{member}/statm").read_text().split()[1])
        except (OSError, IndexError):
            continue
    return total * os.sysconf("SC_PAGE_SIZE") if total else None


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for child in _children(pid):
        yield from _tree(child)


def _children(pid: int) -> list[int]:
    """Children of all threads of *pid*; none where the system does not list them."""
    found: list[int] = []
    for task in _listing(f"/proc/{pid}/task"):
        try:
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
        except OSError:
            continue
    return found


def _listing(folder: str) -> list[str]:
    # Not by Path.glob: before Python 3.13 it raises for what ends while it looks, be it anybody's process.
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _marked(mark: str) -> Iterator[int]:
    """Processes whose environment holds *mark*, us excepted; those of others cannot be read and are not ours."""
    entry = f"{KEEPER_MARK}={mark}".encode()
    for pid in (int(name) for name in _listing("/proc") if name.isdecimal()):
        try:
            found = entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if found and pid != os.getpid():
            yield pid
