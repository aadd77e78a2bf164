"""Which inference requests are under way, and what the last ones took. Nothing of what they say is kept.

What an answer tells of itself is read for several that have ended at once, a quarter of a second after it at the
latest: together they cost a third of what each would between two pieces of other work. Whoever looks sees all.
"""

from collections import deque
from typing import Final, Protocol

import structlog

from rbee.core.errors import RequestNotFound
from rbee.core.usage import Underway, Usage, UsageSink
from rbee.gateway.account import Account
from rbee.gateway.exchange import now

log = structlog.get_logger(__name__)

LIMIT: Final = 1000
"""How many of those that have ended are kept."""

BATCH: Final = 32
"""Ended requests that wait for their account at most: some 8 us each."""


class Watched(Protocol):
    """One request that is under way."""

    def look(self, now: float) -> Underway: ...
    def cancel(self) -> None: ...
    def broken(self) -> None: ...


class RequestLog:
    """Clients choose ids, so two requests may have the same one: they are told apart by themselves."""

    def __init__(self, sink: UsageSink, limit: int = LIMIT) -> None:
        self.sink = sink
        self._underway: dict[Watched, None] = {}
        self._unsettled: list[tuple[Account, int, float, bool]] = []
        self._ended: deque[Usage] = deque(maxlen=limit)

    def begin(self, request: Watched) -> None:
        self._underway[request] = None

    def end(self, request: Watched) -> None:
        """*request* is over; it may never have begun."""
        self._underway.pop(request, None)

    def close(self, account: Account, status: int, ended: float, *, kept: bool) -> None:
        """One has ended with *status*; *kept*: it will be listed, and not only be told to the sink."""
        self._unsettled.append((account, status, ended, kept))
        if len(self._unsettled) >= BATCH:
            self.settle()

    def settle(self) -> None:
        """Read what the ended ones took, and tell it to the sink."""
        unsettled, self._unsettled = self._unsettled, []
        for account, status, ended, kept in unsettled:
            try:
                usage = account.usage(status, ended)
                if kept:
                    self._ended.append(usage)
                self.sink(usage)
            except Exception:  # the sink is not ours, and the others' accounts must not depend on it
                log.exception("usage_lost", request_id=account.request_id)

    def __len__(self) -> int:
        return len(self._underway)

    def underway(self) -> list[Underway]:
        """Those that have not ended, in order of arrival."""
        time = now()
        return [request.look(time) for request in self._underway]

    def ended(self) -> list[Usage]:
        """The last ones that have ended, the newest first."""
        self.settle()
        return list(reversed(self._ended))

    def cancel(self, request_id: str) -> list[Underway]:
        """End all requests with this id; gives what they were. Raises RequestNotFound where none is under way."""
        time = now()
        found = [(request, look) for request in self._underway if (look := request.look(time)).request_id == request_id]
        if not found:
            self.settle()
            if any(usage.request_id == request_id for usage in self._ended):
                raise RequestNotFound(f"The request '{request_id}' has ended already.", ended=True)
            raise RequestNotFound(f"There is no request '{request_id}'. GET /v1/requests lists them.", ended=False)
        for request, _ in found:
            if request not in self._underway:
                # What one gave back, another got, and that may have been its end.
                continue
            try:
                request.cancel()
            except Exception:  # one request's error must not cost the others their end
                request.broken()
        return [look for _, look in found]
