"""The journal in the log: the one place where a change of a worker's state becomes a line."""

import structlog

from rbee.hive.journal import Transition

log = structlog.get_logger(__name__)


def log_transition(entry: Transition) -> None:
    """One line a change; an event that changed nothing is no news."""
    if entry.before is entry.after:
        return
    write = log.warning if entry.exit is not None and entry.after == "failed" else log.info
    write(
        "worker_state_changed",
        worker_id=entry.worker_id,
        before=str(entry.before),
        after=str(entry.after),
        cause=entry.event,
        incarnation=entry.incarnation,
        message=entry.message,
    )
