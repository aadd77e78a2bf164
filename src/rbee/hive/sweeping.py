"""What a worker's process leaves behind is swept up, however often that has to be tried."""

from collections.abc import Callable
from typing import Final

import anyio
import structlog

from rbee.hive.ports import Node

log = structlog.get_logger(__name__)

RETRY_DELAY: Final = 5.0
"""Seconds between two tries; a sweep that fails has tried for long itself."""


class Sweeping:
    """One worker's. ``lock`` is held from the end of a process until nothing is left of it.

    *on_failure* hears of a reason for which it has to be tried again, until it says that it has taken it.
    """

    def __init__(self, worker_id: str, node: Node, on_failure: Callable[[str], bool]) -> None:
        self._worker_id = worker_id
        self._node = node
        self._on_failure = on_failure
        self._reason = ""
        self.lock = anyio.Lock()
        self.is_due = False

    def process_ended(self) -> None:
        """Something may be left from now on."""
        self.is_due, self._reason = True, ""

    async def finish(self, incarnation: int) -> None:
        """Return once nothing is left of the incarnation."""
        while self.is_due:
            await self.once(incarnation)
            if self.is_due:
                await anyio.sleep(RETRY_DELAY)

    async def kill(self, incarnation: int) -> None:
        """Sweep once, unless that is being done already: the process itself may still be there."""
        if not self.lock.locked():
            async with self.lock:
                await self.once(incarnation)

    async def once(self, incarnation: int) -> None:
        try:
            with anyio.CancelScope(shield=True):
                killed = await self._node.sweep(self._worker_id, incarnation)
        except OSError as error:
            log.error("sweep_failed", worker_id=self._worker_id, reason=str(error))  # noqa: TRY400
            self._tell(str(error))
            return
        self.is_due = False
        if killed:
            log.warning("left_behind_processes_killed", worker_id=self._worker_id, processes=killed)

    def _tell(self, reason: str) -> None:
        # Once for each reason: it may be tried for days.
        if reason != self._reason and self._on_failure(reason):
            self._reason = reason
