"""What the next hive must know of a worker, and what it makes of it. Pure."""

from rbee.core.events import Condemned, EndRequested, Event, RestartRequested
from rbee.core.exits import UNKNOWN, Exit, ExitReason
from rbee.core.launch import Ending, ProcessIdentity, StoredWorker
from rbee.core.worker import Worker, WorkerState
from rbee.hive.registry import Record


def row_of(record: Record, identity: ProcessIdentity | None) -> StoredWorker:
    """*identity* of its process, None while it has none."""
    worker = record.worker
    return StoredWorker(
        worker.spec,
        worker.incarnation,
        identity=identity,
        url=worker.url if worker.ready_since is not None else "",
        engine_pid=worker.engine_pid,
        slots=worker.slots,
        restart_count=worker.restart_count,
        started_at=record.started_at.isoformat(),
        ending=_ending(worker),
        last_exit=_exit(worker),
        claim=record.claim,
    )


def told(worker: Worker) -> tuple[object, ...]:
    """What of a worker the next hive must be told as soon as it changes."""
    contact = (worker.url, worker.engine_pid, worker.slots) if worker.ready_since is not None else None
    return contact, _ending(worker), _exit(worker)


def _ending(worker: Worker) -> Ending | None:
    if worker.forget:
        return Ending.FORGET
    if worker.again:
        return Ending.AGAIN
    return None if worker.ending is None else Ending.CONDEMNED


def _exit(worker: Worker) -> Exit | None:
    """How it ended, of one without a process; why it is to end, of one that was condemned."""
    if worker.state in (WorkerState.BACKOFF, WorkerState.FAILED):
        return worker.last_exit
    return None if worker.ending is None else Exit(worker.ending, message=worker.ending_reason)


def resumed(row: StoredWorker) -> Event | None:
    """What the hive before had begun to do to a worker."""
    match row.ending:
        case Ending.FORGET:
            return EndRequested()
        case Ending.AGAIN:
            return RestartRequested()
        case Ending.CONDEMNED:
            why = row.last_exit or UNKNOWN
            return Condemned(why.reason, why.message or "the hive before had begun to end it")
        case None:
            return None


def was_unseen(row: StoredWorker) -> bool:
    """Whether no hive has judged how a worker without a process ended: none saw it, or it never had one."""
    last = row.last_exit
    if last is None:
        return True
    return row.ending is None and last.code is None and last.signal_number is None


def is_fault(exit_: Exit) -> bool:
    """Whether an end that nobody saw was a failure: who heard of no hive, or was told to end, did not fail."""
    is_unknown = exit_.code is None and exit_.signal_number is None
    return not is_unknown and exit_.reason not in (ExitReason.STOPPED, ExitReason.STALE)
