"""Receives beats; a deadline per worker finds the stale one."""

from collections.abc import Callable

import anyio
import structlog

from rbee.core import liveness
from rbee.core.errors import IllegalTransition, OlderIncarnation, WorkerNotFound
from rbee.core.launch import Telemetry
from rbee.core.worker import ALIVE, WorkerState
from rbee.hive.registry import Record, Registry

log = structlog.get_logger(__name__)


class Heartbeats:
    """Times are seconds. *on_stale* gets the id of each worker whose deadline has passed, *on_pause* the time for
    which this hive itself did not run. *can_listen*: whether a beat could be accepted now."""

    def __init__(
        self,
        registry: Registry,
        interval: float,
        stale_after: float,
        on_stale: Callable[[str], None],
        on_pause: Callable[[float], None] = lambda _gap: None,
        can_listen: Callable[[], bool] = lambda: True,
    ) -> None:
        self._registry = registry
        self._interval = interval
        self._stale_after = stale_after
        self._on_stale = on_stale
        self._on_pause = on_pause
        self._can_listen = can_listen
        self._is_deaf = False

    def beat(self, record: Record, incarnation: int | None, healthy: bool, telemetry: Telemetry) -> None:
        """A worker was heard of.

        Raises OlderIncarnation for a beat of an earlier life, IllegalTransition where no process can be alive,
        WorkerNotFound for one started by hand that was taken for dead (it announces itself anew then), and the same,
        though it counts, for one taken over that has not said yet where it serves: it will then.
        """
        worker = record.worker
        check_incarnation(record, incarnation)
        if worker.spec.external and worker.state is WorkerState.FAILED:
            # The pid that it gave may be another process's: in a pid namespace of its own it knows no better.
            raise WorkerNotFound(f"Worker '{record.worker_id}' was taken for dead here; announce it again.")
        if worker.state not in ALIVE:
            raise IllegalTransition(f"Worker '{record.worker_id}' is {worker.state}: no process of it can beat.")
        record.vital = liveness.seen(anyio.current_time(), self._stale_after)
        record.healthy = healthy
        record.telemetry = telemetry
        # The words are the original's, people search for them.
        log.info("Received heartbeat", worker_id=record.worker_id, healthy=healthy)
        if record.unannounced:
            raise WorkerNotFound(f"Where worker '{record.worker_id}' serves is not known here yet; announce it again.")

    async def run(self) -> None:
        """Judge each worker on its own deadline. Ends only by cancellation."""
        before = anyio.current_time()
        while True:
            await anyio.sleep(self._until_next_look(before))
            now = anyio.current_time()
            if liveness.paused(now - before):
                log.warning("hive_was_paused", seconds=round(now - before, 3), workers=len(self._registry))
                self._forgive(now, now - before)
            elif self._is_unreachable():
                self._forgive(now, now - before)
            else:
                self._judge(now)
            before = anyio.current_time()

    def _until_next_look(self, now: float) -> float:
        earliest = min((r.vital.deadline for r in self._registry if r.worker.is_watched), default=now + 3600.0)
        return min(liveness.TICK_INTERVAL, max(0.0, earliest - now))

    def _forgive(self, now: float, gap: float) -> None:
        for record in self._registry:
            record.vital = liveness.after_pause(record.vital, now, self._interval)
        self._on_pause(gap)

    def _is_unreachable(self) -> bool:
        """Whether no beat can be accepted: what is not heard then is this hive's own doing."""
        was_deaf, self._is_deaf = self._is_deaf, not self._can_listen()
        if self._is_deaf and not was_deaf:
            log.error("hive_out_of_descriptors", workers=len(self._registry))
        elif was_deaf and not self._is_deaf:
            log.info("hive_has_descriptors_again")
        return self._is_deaf

    def _judge(self, now: float) -> None:
        overdue = [r.worker_id for r in self._registry if r.worker.is_watched and r.vital.is_stale(now)]
        for worker_id in overdue:
            self._on_stale(worker_id)


def check_incarnation(record: Record, incarnation: int | None) -> None:
    """Raise OlderIncarnation for a callback that does not come from the incarnation that runs now."""
    current = record.worker.incarnation
    if incarnation is not None and incarnation != current and not record.worker.spec.external:
        raise OlderIncarnation(
            f"Worker '{record.worker_id}' is at incarnation {current}; this call came from incarnation {incarnation}.",
            incarnation=current,
        )
