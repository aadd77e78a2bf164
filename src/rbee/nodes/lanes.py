"""Threads for each kind of blocking work, so that slow forks or a slow disk hold up nothing but their own kind."""

from collections.abc import Callable
from typing import Final, TypeVar, TypeVarTuple

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Lane:
    """So many *threads*, apart from those that anyio shares among all others; counted for each event loop."""

    def __init__(self, name: str, threads: int) -> None:
        self._threads = threads
        self._limiter: RunVar[anyio.CapacityLimiter] = RunVar(f"rbee.nodes.{name}")

    async def run(self, work: Callable[[*Ts], T], *arguments: *Ts, abandon_on_cancel: bool = False) -> T:
        """What *work* returns or raises, from a thread of this lane; waits for one that is free."""
        limiter = self._limiter.get(None)
        if limiter is None:
            limiter = anyio.CapacityLimiter(self._threads)
            self._limiter.set(limiter)
        return await anyio.to_thread.run_sync(work, *arguments, abandon_on_cancel=abandon_on_cancel, limiter=limiter)


SPAWNS: Final = Lane("spawns", 4)
SCANS: Final = Lane("scans", 4)
"""Looks at processes and groups, and sweeps. A scan of all processes is one at a time anyway."""
FILES: Final = Lane("files", 8)
"""Logs and what else the folders of workers hold."""
MEASURES: Final = Lane("measures", 2)
"""Of many processes at once, by the second."""
LOOKS: Final = Lane("looks", 16)
"""What the machine has left: admission waits for it. A disk that hangs takes its thread along."""
EXACT: Final = Lane("exact", 2)
"""Measurements that walk through all pages of a process."""
BUILDS: Final = Lane("builds", 4)
"""Children that say what an engine was built for."""
ENDS: Final = Lane("ends", 10_000)
"""One for each process that is waited for where there are no pidfds."""
