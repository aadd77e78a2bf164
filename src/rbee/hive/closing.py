"""The end of a hive: its workers are ended, or left for the next one, within one budget of time."""

from collections.abc import Mapping, Sequence

import anyio
import structlog

from rbee.core.events import EndRequested
from rbee.core.worker import WorkerState
from rbee.hive.supervisor import Patience, Supervisor

log = structlog.get_logger(__name__)


class Closing:
    """*supervisors* by worker id: the pool's own, from which each goes when its worker is forgotten."""

    def __init__(self, supervisors: Mapping[str, Supervisor], patience: Patience, *, leaves_workers: bool) -> None:
        self._supervisors = supervisors
        self._patience = patience
        self._leaves_workers = leaves_workers
        self._hurried = False
        self._leaving: anyio.CancelScope | None = None

    async def stop(self, budget: float) -> list[str]:
        """End every worker within *budget* seconds; returns the ids of those that would not.

        Two thirds of the time are for requests in flight, most of the rest for a clean end; what is there after that
        is killed.
        """
        self._shorten(budget)
        self._end_all(force=False)
        for supervisor in self._supervisors.values():
            supervisor.hurry()
        with anyio.move_on_after(budget * 0.95):
            await self._wait_all_gone()
        self._end_all(force=True)
        with anyio.move_on_after(budget * 0.05):
            await self._wait_all_gone()
        return self._would_not_stop(list(self._supervisors))

    async def leave(self, budget: float) -> list[str]:
        """Let go of every worker, to be taken over by the next hive; those that somebody wants gone are ended.

        Requests in flight get two thirds of *budget* seconds. Returns the ids of those that would not stop.
        """
        self._shorten(budget)
        with anyio.CancelScope() as self._leaving:
            if self._hurried:
                self._leaving.cancel()
            for supervisor in self._supervisors.values():
                supervisor.hurry()
            with anyio.move_on_after(budget * 2 / 3):
                for supervisor in list(self._supervisors.values()):
                    await supervisor.wait_idle()
            with anyio.move_on_after(budget / 4):
                await self._wait_gone(self._unwanted())
        # Asked for again each time: the control API is up, and somebody may delete a worker while the others wait.
        for worker_id in self._unwanted():
            self._end(self._supervisors[worker_id], force=True)
        with anyio.move_on_after(budget / 12):
            await self._wait_gone(self._unwanted())
        left = self._unwanted()
        await self._let_go()
        return self._would_not_stop(left)

    def hurry(self) -> None:
        """No more waiting for anybody; it counts also before the end has begun."""
        self._hurried = True
        if not self._leaves_workers:
            self._end_all(force=True)
        elif self._leaving is not None:
            self._leaving.cancel()

    def _shorten(self, budget: float) -> None:
        self._patience.drain_timeout = min(self._patience.drain_timeout, budget * 2 / 3)
        self._patience.term_grace = min(self._patience.term_grace, budget * 7 / 30)

    def _unwanted(self) -> list[str]:
        """Those that somebody wants gone, also those that are and of which something is left."""
        return [worker_id for worker_id, supervisor in self._supervisors.items() if supervisor.worker.forget]

    async def _let_go(self) -> None:
        for worker_id, supervisor in list(self._supervisors.items()):
            worker = supervisor.worker
            if not worker.forget:
                log.info("worker_left_running", worker_id=worker_id, state=str(worker.state), pid=worker.pid)
                supervisor.leave()
                await supervisor.forgotten.wait()

    def _end_all(self, *, force: bool) -> None:
        for supervisor in list(self._supervisors.values()):
            self._end(supervisor, force=force)

    def _end(self, supervisor: Supervisor, *, force: bool) -> None:
        if supervisor.worker.state is not WorkerState.GONE:
            supervisor.take(EndRequested(force=force))

    async def _wait_all_gone(self) -> None:
        while self._supervisors:
            await self._wait_gone(list(self._supervisors))

    async def _wait_gone(self, worker_ids: Sequence[str]) -> None:
        for worker_id in worker_ids:
            supervisor = self._supervisors.get(worker_id)
            if supervisor is not None:
                await supervisor.forgotten.wait()

    def _would_not_stop(self, left: list[str]) -> list[str]:
        for worker_id in left:
            log.error("worker_would_not_stop", worker_id=worker_id, message=self._supervisors[worker_id].worker.message)
        return left
