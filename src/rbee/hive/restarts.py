"""What a supervisor asks before its worker is started again."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import anyio

from rbee.core.errors import RequestError
from rbee.core.events import CircuitOpened, RestartDecision, RestartRefused
from rbee.core.exits import Exit
from rbee.core.worker import Worker
from rbee.hive.circuits import Circuits

REFUSED_DELAY: Final = 10.0
"""Seconds until a restart that did not fit is asked for again, unless a worker leaves before: other programs' memory is
free again without a word."""


class Restarts:
    """*adopted* is set once the workers of the hive before are taken over: nothing is started before that.

    *readmit* admits a worker again. It raises RequestError or OSError where it does not fit now, or cannot be asked.
    """

    def __init__(self, circuits: Circuits, adopted: anyio.Event, readmit: Callable[[Worker], Awaitable[None]]) -> None:
        self._circuits = circuits
        self._adopted = adopted
        self._readmit = readmit

    def decide(self, worker: Worker, exit_: Exit) -> RestartDecision:
        """What becomes of a worker whose process ended though nobody asked it to; the end is counted."""
        return self._circuits.decide(worker, exit_)

    def resume(self, worker: Worker) -> RestartDecision:
        """What becomes of one that ended while no hive ran, and by no fault of its own: not counted."""
        return self._circuits.resume(worker.spec)

    def postpone(self, worker: Worker, refusals: int) -> RestartDecision:
        """What becomes of one whose process could not be started, for the *refusals*-th time in a row: not counted."""
        return self._circuits.postpone(worker.spec, refusals)

    def refused(self, reason: str) -> RestartRefused:
        """What becomes of one that did not fit, whatever its policy: somebody wants it started."""
        return RestartRefused(reason, REFUSED_DELAY)

    async def wait_until_allowed(self) -> None:
        await self._adopted.wait()

    async def ask(self, worker: Worker) -> CircuitOpened | RestartRefused | None:
        """Whether its circuit, or want of memory, keeps it from being started now; None: neither."""
        blocked = self._circuits.blocked(worker.spec)
        if blocked is not None:
            return blocked
        try:
            await self._readmit(worker)
        except (RequestError, OSError) as error:
            return self.refused(str(error))
        return self._circuits.blocked(worker.spec)

    def begin(self, worker: Worker) -> None:
        """It is started now."""
        self._circuits.begin(worker.spec)

    def note_log(self, worker: Worker, lines: Sequence[str]) -> None:
        """The last lines that a failed worker wrote."""
        self._circuits.note_log(worker.spec, lines)
