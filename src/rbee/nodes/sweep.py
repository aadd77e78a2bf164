"""Kills what is left of a worker, wherever it hides, and returns once it is gone."""

import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

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

_ROUNDS: Final = 100
"""Scans of one sweep: what forks faster than it is killed may have this many lives."""

_RETRY_DELAY: Final = 0.1
"""Seconds until a scan is tried again that found no descriptor to read with."""


class Sweeper:
    def __init__(self, groups: WorkerGroups) -> None:
        self._groups = groups
        self.scan = SharedScan()

    async def sweep(self, worker_id: str, incarnation: int, keeper_pid: int = 0) -> int:
        """Kill all that is left of an incarnation: its cgroup and whatever carries its mark; how many there were.

        What was killed before in the session of *keeper_pid* is waited for, too.
        """
        mark = marks.mark_of(worker_id, incarnation)
        killed: set[int] = set()
        group = self._groups.find(worker_id, incarnation)
        if group is not None:
            killed |= await self._kill_group(group)
        killed |= await self._kill_marked(lambda found: found.incarnation == mark, keeper_pid)
        if group is not None and not await SCANS.run(self._groups.forget, group):
            log.warning("cgroup_not_removed", worker_id=worker_id, cgroup=str(group))
        return len(killed)

    async def sweep_orphans(self) -> int:
        """Kill, of this user, all that is left of keepers that are gone; how many there were."""
        killed = await self._kill_marked(_is_orphan)
        for group in await SCANS.run(self._abandoned_groups):
            killed |= await self._kill_group(group)
            await SCANS.run(self._groups.forget, group)
        return len(killed)

    def _abandoned_groups(self) -> list[Path]:
        return [group for mark, group in self._groups.all() if not _has_keeper(group, mark)]

    async def find_keeper(self, worker_id: str, incarnation: int) -> ProcessIdentity | None:
        """The living keeper of an incarnation, by its mark alone; None where there is none."""
        mark = marks.mark_of(worker_id, incarnation)
        for found in await self.scan():
            if is_keeper(found, mark):
                identity = processes.identify(found.pid)
                # The same pid, looked at again: from here on its start time tells it from others.
                if identity is not None and marks.read(found.pid) == found:
                    return identity
        return None

    async def _kill_marked(self, condemned: Callable[[Marked], bool], session: int = 0) -> set[int]:
        killed: set[int] = set()
        stubborn: set[int] = set()
        for _ in range(_ROUNDS):
            try:
                scanned = await self.scan()
            except OSError as error:
                log.warning("sweep_delayed", reason=str(error))
                await anyio.sleep(_RETRY_DELAY)
                continue
            fresh = [found.pid for found in scanned if condemned(found) and found.pid not in stubborn]
            if not fresh:
                await _wait_gone(_hold(found.pid for found in scanned if session and found.ending_in == session))
                return killed
            killed |= set(fresh)
            stubborn |= await end(fresh, condemned)
        log.error("sweep_given_up", killed=len(killed))
        return killed

    async def _kill_group(self, group: Path) -> set[int]:
        """All that is in it, also what is born meanwhile; who would not go is left to the next sweep."""
        killed: set[int] = set()
        for _ in range(_ROUNDS):
            found = set(await SCANS.run(cgroups.members, group))
            if not found - killed:
                return killed
            handles = _hold(found)
            killed |= found
            try:
                cgroups.kill(group)
            except OSError as error:
                log.warning("cgroup_not_killed", cgroup=str(group), reason=str(error))
            await _wait_gone(handles)
        return killed


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


async def end(pids: Iterable[int], condemned: Callable[[Marked], bool]) -> set[int]:
    """SIGKILL to each that is still *condemned* once it is held; the pids of those that would not go."""
    handles = _hold(pids)
    for handle in handles:
        # The pid was read from a scan; now that it is held it can become no other, so its mark is its own.
        marked = marks.read(handle.pid)
        if marked is not None and condemned(marked):
            handle.signal(signal.SIGKILL)
    return await _wait_gone(handles)


def _hold(pids: Iterable[int]) -> list[processes.Handle]:
    handles: list[processes.Handle] = []
    for pid in pids:
        try:
            handles.append(processes.Handle(pid))
        except ProcessLookupError:
            continue
        except OSError as error:
            log.warning("process_not_held", pid=pid, reason=str(error))
    return handles


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
    if left:
        log.error("killed_processes_stay", pids=sorted(left))
    return left
