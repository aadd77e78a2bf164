"""What a supervisor asks before its worker is started again."""

from collections.abc import Sequence

import anyio

from rbee.core.events import CircuitOpened, RestartDecision
from rbee.core.exits import Exit
from rbee.core.worker import Worker
from rbee.hive.circuits import Circuits


class Restarts:
    """*adopted* is set once the workers of the hive before are taken over: nothing is started before that."""

    def __init__(self, circuits: Circuits, adopted: anyio.Event) -> None:
        self._circuits = circuits
        self._adopted = adopted

    def decide(self, worker: Worker, exit_: Exit) -> RestartDecision:
        """What becomes of a worker whose process ended though nobody asked it to; the end is counted."""
        return self._circuits.decide(worker, exit_)

    def resume(self, worker: Worker) -> RestartDecision:
        """What becomes of one that ended while no hive ran, and by no fault of its own: not counted."""
        return self._circuits.resume(worker.spec)

    def postpone(self, worker: Worker, refusals: int) -> RestartDecision:
        """What becomes of one whose process could not be started, for the *refusals*-th time in a row: not counted."""
        return self._circuits.postpone(worker.spec, refusals)

    async def wait_until_allowed(self) -> None:
        await self._adopted.wait()

    def ask(self, worker: Worker) -> CircuitOpened | None:
        """Whether its circuit keeps it from being started now; None: no, and it counts as started."""
        blocked = self._circuits.blocked(worker.spec)
        if blocked is None:
            self._circuits.begin(worker.spec)
        return blocked

    def note_log(self, worker: Worker, lines: Sequence[str]) -> None:
        """The last lines that a failed worker wrote."""
        self._circuits.note_log(worker.spec, lines)
