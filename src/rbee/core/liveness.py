"""Age of the last heartbeat -> fresh or stale, less the time in which the hive itself did not run.

All times are seconds on the hive's monotonic clock and come in as arguments.
"""

from dataclasses import dataclass, replace
from typing import Final

PAUSE_THRESHOLD: Final = 0.5
"""Seconds; a gap between two ticks that is longer means that this process did not run."""

TICK_INTERVAL: Final = 0.25
"""Seconds between two looks at the clock."""

PAUSE_MARGIN: Final = 5.0
"""Seconds; a beat's own timeout, on top of one interval, before anyone is judged after a pause."""


@dataclass(frozen=True, slots=True)
class Vital:
    """When one worker was last heard of, and when it is stale.

    ``since`` is the last beat, or the spawn for a worker that never beat. ``deadline`` is at least
    ``since + stale_after``; a pause of the hive moves it and never ``since``.
    """

    since: float
    deadline: float

    def age(self, now: float) -> float:
        return max(0.0, now - self.since)

    def is_stale(self, now: float) -> bool:
        return now >= self.deadline


def seen(now: float, stale_after: float) -> Vital:
    """A worker that was heard of, or spawned, at *now*."""
    return Vital(since=now, deadline=now + stale_after)


def paused(gap: float) -> bool:
    """Whether *gap* seconds between two ticks mean that the hive itself stood still."""
    return gap > PAUSE_THRESHOLD


def after_pause(vital: Vital, now: float, heartbeat_interval: float) -> Vital:
    """The vital after a pause that ended at *now*.

    Timers run before queued beats are read, so each pending deadline is moved to at least one
    interval and one beat's timeout away: every living worker gets the chance to be heard first.
    """
    return replace(vital, deadline=max(vital.deadline, now + heartbeat_interval + PAUSE_MARGIN))
