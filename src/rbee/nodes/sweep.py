"""Kills what is left of a worker, wherever it hides, and returns once it is gone."""

import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import anyio
import structlog

from rbee.core.launch import ProcessIdentity
from rbee.nodes import cgroups, marks, processes
from rbee.nodes.cgroups import WorkerGroups
from rbee.nodes.lanes import SCANS
from rbee.nodes.marks import Marked, SharedScan

log = structlog.get_logger(__name__)

GONE_TIMEOUT: Final = 5.0
"""Seconds in which a killed process must be gone. One that gives back much memory takes a while, one in an
uninterruptible wait may take for ever."""

PATIENCE: Final = 10.0
"""Seconds without any more of them ending, or without a look at them, until a sweep says that it cannot do it."""

_ROUNDS: Final = 100
"""Strikes of one sweep: what forks faster than it is killed may have this many lives."""

_HELD: Final = 128
"""Processes waited for at once, each with a descriptor. All are killed at once; the rest is waited for after these."""

_RETRY_DELAY: Final = 0.1
"""Seconds between two strikes of which the first brought nothing."""

_NAMED: Final = 20
"""Pids that an error names."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is to end: all whose marks are *condemned*, and all in *group*. What was killed before in *session* is
    waited for, too."""

    whose: str
    condemned: Callable[[Marked], bool] | None = None
    group: Path | None = None
    session: int = 0


class Strike(NamedTuple):
    """The pids that were found, those of them that are killed, and holds on those to be waited for."""

    found: set[int]
    killed: set[int]
    handles: list[processes.Handle]


class Sweeper:
    def __init__(self, groups: WorkerGroups) -> None:
        self._groups = groups
        self.scan = SharedScan()

    async def sweep(self, worker_id: str, incarnation: int, keeper_pid: int = 0) -> int:
        """Kill all that is left of an incarnation: its cgroup and whatever carries its mark; how many there were.

        What was killed before in the session of *keeper_pid* is waited for, too. Raises OSError while any of them
        lives that would not end, or cannot be looked at.
        """
        mark = marks.mark_of(worker_id, incarnation)
        killed: set[int] = set()
        group = self._groups.find(worker_id, incarnation)
        await self._end_all(Target(mark, lambda found: found.incarnation == mark, group, keeper_pid), killed)
        if group is not None and not await SCANS.run(self._groups.forget, group):
            log.warning("cgroup_not_removed", worker_id=worker_id, cgroup=str(group))
        return len(killed)

    async def sweep_orphans(self) -> int:
        """Kill, of this user, all that is left of keepers that are gone; how many there were.

        What would not end is logged and left: it is nobody's worker, so nobody waits for what it holds.
        """
        killed: set[int] = set()
        try:
            await self._end_all(Target("gone keepers", _is_orphan), killed)
            for group in await SCANS.run(self._abandoned_groups):
                await self._end_all(Target(group.name, group=group), killed)
                await SCANS.run(self._groups.forget, group)
        except OSError as error:
            log.error("orphans_left", reason=str(error))  # noqa: TRY400
        return len(killed)

    def _abandoned_groups(self) -> list[Path]:
        return [group for mark, group in self._groups.all() if not _has_keeper(group, mark)]

    async def find_keeper(self, worker_id: str, incarnation: int) -> ProcessIdentity | None:
        """The living keeper of an incarnation, by its mark alone; None where there is none.

        Raises OSError where that cannot be found out.
        """
        return await SCANS.run(_keeper_among, await self.scan(), marks.mark_of(worker_id, incarnation))

    async def _end_all(self, target: Target, killed: set[int]) -> None:
        """Kill until nothing is left; *killed* gets the pids. Raises OSError when that comes to nothing."""
        deadline = anyio.current_time() + PATIENCE
        left = ""
        for _ in range(_ROUNDS):
            try:
                strike = await self._strike(target)
            except OSError as error:
                before, left = left, f"what is left of {target.whose} cannot be looked for: {error}"
                if left != before:
                    log.warning("sweep_delayed", reason=left)
            else:
                if not strike.found:
                    return
                killed |= strike.killed
                stay = await _wait_gone(strike.handles)
                left = _do_not_end(stay or strike.found, target.whose)
                if len(stay) < len(strike.handles):
                    deadline = anyio.current_time() + PATIENCE
                    continue
            if anyio.current_time() >= deadline:
                break
            await anyio.sleep(_RETRY_DELAY)
        raise OSError(left)

    async def _strike(self, target: Target) -> Strike:
        scanned = await self.scan() if target.condemned is not None else ()
        return await SCANS.run(strike, target, scanned)


def strike(target: Target, scanned: Sequence[Marked]) -> Strike:
    """SIGKILL to all that is to end. Blocking. Raises OSError where nothing can be held."""
    members = set() if target.group is None else _kill_group(target.group)
    doomed = {found.pid for found in scanned if target.condemned is not None and target.condemned(found)}
    ending = {found.pid for found in scanned if target.session and found.ending_in == target.session}
    handles: list[processes.Handle] = []
    trouble: OSError | None = None
    for pid in sorted(members | doomed | ending):
        try:
            handle = _end(pid, target.condemned if pid in doomed else None)
        except OSError as error:
            # The next strike may find what this one lacks.
            trouble = error
            continue
        if handle is not None and len(handles) < _HELD:
            handles.append(handle)
        elif handle is not None:
            handle.close()
    if trouble is not None and not handles:
        raise trouble
    return Strike(members | doomed | ending, members | doomed, handles)


def _kill_group(group: Path) -> set[int]:
    members = set(cgroups.members(group))
    try:
        if members:
            cgroups.kill(group)
    except OSError as error:
        log.warning("cgroup_not_killed", cgroup=str(group), reason=str(error))
    return members


def _end(pid: int, condemned: Callable[[Marked], bool] | None) -> processes.Handle | None:
    """A hold on the process, after SIGKILL if it still is *condemned*; None for one that is gone or is spared."""
    with ExitStack() as undo:
        try:
            handle = processes.Handle(pid)
        except ProcessLookupError:
            return None
        undo.callback(handle.close)
        if condemned is not None:
            # The pid was read from a scan; now that it is held it can become no other, so its mark is its own.
            marked = marks.read(pid)
            if marked is None or not (marked.ending_in or condemned(marked)):
                return None
            handle.signal(signal.SIGKILL)
        undo.pop_all()
        return handle


def _do_not_end(pids: set[int], whose: str) -> str:
    named = ", ".join(str(pid) for pid in sorted(pids)[:_NAMED])
    return f"{len(pids)} processes of {whose} do not end: pids {named}{', ...' if len(pids) > _NAMED else ''}"


def _keeper_among(scanned: Sequence[Marked], mark: str) -> ProcessIdentity | None:
    for found in scanned:
        if is_keeper(found, mark):
            identity = processes.identify(found.pid)
            # The same pid, looked at again: from here on its start time tells it from others.
            if identity is not None and marks.read(found.pid) == found:
                return identity
    return None


def is_keeper(found: Marked, mark: str) -> bool:
    """Whether it is the keeper of that incarnation: it leads its session, and no keeper stands above it."""
    return found.incarnation == mark and not found.keeper and processes.leads_session(found.pid)


def _has_keeper(group: Path, mark: str) -> bool:
    try:
        found = [marks.read(pid) for pid in cgroups.members(group)]
    except OSError:
        # Not to be looked into is no reason to kill what may be somebody's.
        return True
    return any(marked is not None and is_keeper(marked, mark) for marked in found)


def _is_orphan(found: Marked) -> bool:
    """Raises OSError where its keeper cannot be looked at just now."""
    pid, _, started = found.keeper.partition(":")
    # Start 0: the keeper could not read its own. In another namespace its pid would be somebody else's.
    if not pid.isdecimal() or not started.isdecimal() or int(started) == 0:
        return False
    try:
        if processes.start_time(int(pid)) == int(started):
            return False
        is_ours = processes.same_user(found.pid)
    except PermissionError:
        # A keeper that may not be looked at is not known to be gone.
        return False
    return is_ours and marks.in_our_pid_namespace(found.pid)


async def _wait_gone(handles: list[processes.Handle]) -> set[int]:
    """Wait until their memory has come back (a process that has ended has given it up), and let go of them."""
    left = {handle.pid for handle in handles}

    async def wait(handle: processes.Handle) -> None:
        await handle.wait()
        left.discard(handle.pid)

    try:
        with anyio.move_on_after(GONE_TIMEOUT):
            async with anyio.create_task_group() as tasks:
                for handle in handles:
                    tasks.start_soon(wait, handle)
    finally:
        for handle in handles:
            handle.close()
    return left
