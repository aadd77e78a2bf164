"""When to beat, when to try again, when the hive counts as gone, and how long an end may take.

Pure: time is an argument (monotonic seconds).
"""

from typing import Final

RETRY_DELAYS: Final = (1.0, 2.0, 4.0, 8.0)
"""Seconds after a failed beat until the next try, within one heartbeat interval (DESIGN section 3)."""

_BY_HAND: Final = 10.0
"""Seconds to end the engine in, after the drain, where nobody has said when this process will be killed."""

_DRAIN_SHARE: Final = 0.3
_KILL_SHARE: Final = 0.6
"""Of the time until the keeper itself is killed. A hive that stops has 0.7 of what it told at the spawn (Pool.stop)."""


def drain_at_most(drain_timeout: float, end_timeout: float | None) -> float:
    """Seconds that requests in flight get of an end that may take *end_timeout* seconds; None: no such limit."""
    return drain_timeout if end_timeout is None else min(drain_timeout, end_timeout * _DRAIN_SHARE)


def kill_after(end_timeout: float | None) -> float:
    """Seconds of an end after which the engine is killed, so that the rest is enough to see all of it gone."""
    return (_BY_HAND if end_timeout is None else end_timeout) * _KILL_SHARE


def announce_delay(failures: int) -> float:
    """Seconds until the next try to announce after *failures* (>= 1) in a row: 1, 2, 4, 8, then 8 each time."""
    return RETRY_DELAYS[min(failures, len(RETRY_DELAYS)) - 1]


class BeatPlan:
    """The times of one worker's heartbeats.

    An orphan is judged only by an attempt that failed after the deadline, never by the clock alone: a keeper that was
    itself stopped (SIGSTOP, a suspended laptop) must ask once more before it gives up its model.
    """

    def __init__(self, now: float, interval: float, orphan_timeout: float) -> None:
        self.interval = interval
        self.orphan_timeout = orphan_timeout
        self._last_success = now
        self._next_beat = now
        self._retry_at: float | None = None
        self._failures = 0

    @property
    def failures(self) -> int:
        """Failed tries in a row within the present interval."""
        return self._failures

    @property
    def orphan_at(self) -> float:
        """From when on a failed attempt means that the hive is gone."""
        return self._last_success + self.orphan_timeout

    def due(self, now: float) -> float:
        """When the next attempt is to be made; in the past means at once."""
        times = [self._next_beat]
        if self._retry_at is not None:
            times.append(self._retry_at)
        if now < self.orphan_at:
            times.append(self.orphan_at)
        return min(times)

    def attempt(self, now: float) -> None:
        """An attempt starts. Beats keep to their own grid, so a slow answer does not shift all later ones."""
        self._retry_at = None
        if now >= self._next_beat:
            self._failures = 0
            missed = (now - self._next_beat) // self.interval
            self._next_beat += (missed + 1) * self.interval

    def succeeded(self, now: float) -> None:
        self._failures = 0
        self._retry_at = None
        self._last_success = now

    def failed(self, now: float) -> None:
        if self._failures < len(RETRY_DELAYS):
            self._retry_at = now + RETRY_DELAYS[self._failures]
        self._failures += 1

    def beat_at_once(self, now: float) -> None:
        """Try again now instead of later. As a retry, not as a new interval: else a hive that never knows us
        (404, announced again, 404) would be asked in a tight loop."""
        self._retry_at = now

    def orphaned(self, started: float) -> bool:
        """Whether an attempt that *started* then and failed came ``orphan_timeout`` or more after the last 2xx."""
        return started >= self.orphan_at
