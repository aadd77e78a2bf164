"""How much one key may ask: requests at once, and requests a minute. Pure: times come in.

The window is exact: a request counts for 60 s from the moment in which it was let in. One that is refused counts
for nothing, so whoever waits as long as Retry-After says is let in.
"""

from collections import deque
from typing import Final

from rbee.core.auth import Principal
from rbee.core.errors import TooManyRequests

WINDOW: Final = 60.0
"""Seconds."""

SHORTEST_RETRY: Final = 1.0
"""Seconds; the smallest that the header can say."""

_WEIGHT: Final = 0.2
"""Of the newest request in the mean time that a key's requests take."""


class _Usage:
    """What one key has going on."""

    __slots__ = ("in_flight", "mean_seconds", "starts")

    def __init__(self) -> None:
        self.in_flight = 0
        self.starts: deque[float] = deque()
        self.mean_seconds = 0.0


class Seat:
    """One request's place among those of its key: given back exactly once, however the request ends."""

    __slots__ = ("_since", "_usage")

    def __init__(self, usage: _Usage, since: float) -> None:
        self._usage: _Usage | None = usage
        self._since = since

    def release(self, now: float) -> None:
        usage, self._usage = self._usage, None
        if usage is not None:
            usage.in_flight -= 1
            took = now - self._since
            usage.mean_seconds += (took - usage.mean_seconds) * (_WEIGHT if usage.mean_seconds else 1.0)


class Quotas:
    """By key. Who has no limits is not counted at all."""

    def __init__(self) -> None:
        self._usages: dict[str, _Usage] = {}

    def take(self, principal: Principal, now: float) -> Seat | None:
        """A seat for one more request of *principal*, None where nothing limits it. Raises TooManyRequests."""
        if not principal.is_limited:
            return None
        usage = self._usages.setdefault(principal.name, _Usage())
        most = principal.max_in_flight
        if most and usage.in_flight >= most:
            requests = "1 request" if usage.in_flight == 1 else f"{usage.in_flight} requests"
            raise TooManyRequests(
                f"The key '{principal.name}' has {requests} under way, and may have no more "
                f"(keys.{principal.name}.max_in_flight: {most}). Try again when one of them has ended.",
                retry_after=max(SHORTEST_RETRY, usage.mean_seconds / most),
            )
        if principal.requests_per_minute:
            _check_window(usage.starts, principal, now)
            usage.starts.append(now)
        usage.in_flight += 1
        return Seat(usage, now)

    def in_flight(self, name: str) -> int:
        usage = self._usages.get(name)
        return 0 if usage is None else usage.in_flight


def _check_window(starts: deque[float], principal: Principal, now: float) -> None:
    while starts and now - starts[0] >= WINDOW:
        starts.popleft()
    if len(starts) >= principal.requests_per_minute:
        raise TooManyRequests(
            f"The key '{principal.name}' has asked {'once' if len(starts) == 1 else f'{len(starts)} times'} within a "
            f"minute, and may ask no more often "
            f"(keys.{principal.name}.requests_per_minute: {principal.requests_per_minute}). Try again later.",
            retry_after=max(SHORTEST_RETRY, starts[0] + WINDOW - now),
        )
