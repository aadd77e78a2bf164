"""Whether the kernel's out-of-memory killer was at work, by the counters that it leaves."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from rbee.nodes import cgroups

SHORTLY: Final = 15.0
"""Seconds. A keeper whose engine was killed takes up to 7 to end; looks are 5 apart."""

_VMSTAT: Final = Path("/proc/vmstat")
_MOST: Final = 1000
"""Kills remembered of one look."""


def counter_of(pid: int) -> Path | None:
    """The file with the count that tells about this process; None where none can be read.

    That of the nearest cgroup that has one: it counts its own members alone, whoever ran out of memory. The kernel's
    own (/proc/vmstat) counts those of everybody, so it is asked only where there is no other. In v1 a group does not
    count for those below it, so only its own tells.
    """
    try:
        unified, v1 = cgroups.directory_of(pid), cgroups.directory_of(pid, "memory")
    except OSError:
        return None
    while unified is not None and unified.name:
        if read(unified / "memory.events") is not None:
            return unified / "memory.events"
        unified = unified.parent if (unified.parent / "cgroup.procs").exists() else None
    if v1 is not None and read(v1 / "memory.oom_control") is not None:
        return v1 / "memory.oom_control"
    return None if read(_VMSTAT) is None else _VMSTAT


def limit_reached(group: Path) -> int | None:
    """The limit of a v2 group in bytes, where it is what memory ran out by; None where that was another's."""
    try:
        limit = (group / cgroups.MEMORY_LIMIT).read_text().strip()
    except OSError:
        return None
    # The ``oom`` of a group counts the limits of itself and of those below it, of which a worker's has none.
    return int(limit) if limit.isdigit() and read(group / "memory.events", "oom") else None


def read(path: Path, name: str = "oom_kill") -> int | None:
    """The number behind *name*, in the one form that all three files have; None where there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        found, _, value = line.partition(" ")
        if found == name and value.isdigit():
            return int(value)
    return None


class _Kill(NamedTuple):
    look: int
    seen_at: float
    not_before: float


@dataclass
class _Counter:
    count: int
    looked_at: float
    kills: list[_Kill] = field(default_factory=list)


class Birth(NamedTuple):
    """What is remembered of a process when it comes: its counter, and the number of the last look before."""

    counter: Path | None
    look: int


class OomWatch:
    """Looks at the counters from time to time; a count that moved explains one SIGKILL each. Safe between threads."""

    def __init__(
        self, counter_of: Callable[[int], Path | None] = counter_of, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._counter_of = counter_of
        self._clock = clock
        self._counters: dict[Path, _Counter] = {}
        self._looks = 0
        self._lock = threading.Lock()

    def begin(self, pid: int) -> Birth:
        """Take the count as it is now as what *pid* begins with."""
        path = self._counter_of(pid)
        with self._lock:
            self._look()
            if path is not None and path not in self._counters and (count := read(path)) is not None:
                self._counters[path] = _Counter(count, self._clock())
            return Birth(path, self._looks)

    def look(self) -> None:
        """See whether any has moved. Cheap: one small file, a few at most."""
        with self._lock:
            self._look()

    def _look(self) -> None:
        now = self._clock()
        self._looks += 1
        for path, counter in list(self._counters.items()):
            count = read(path)
            if count is None:
                del self._counters[path]
                continue
            counter.kills = [kill for kill in counter.kills if now - kill.seen_at <= SHORTLY]
            counter.kills += [_Kill(self._looks, now, counter.looked_at)] * min(count - counter.count, _MOST)
            counter.count, counter.looked_at = count, now

    def explains(self, birth: Birth) -> bool | None:
        """Whether the killer ended the process of *birth*, of whose SIGKILL we have just heard.

        None where no counter can be read, or where nobody looked for so long that a move may be an old one. A kill
        explains one death: the next one is not taken for it, too.
        """
        with self._lock:
            self._look()
            counter = None if birth.counter is None else self._counters.get(birth.counter)
            if counter is None:
                return None
            kill = next((kill for kill in counter.kills if kill.look > birth.look), None)
            if kill is None:
                return False
            counter.kills.remove(kill)
            return True if kill.seen_at - kill.not_before <= SHORTLY else None
