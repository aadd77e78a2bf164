"""Which inference requests are under way, and what the last ones took. Nothing of what they say is kept."""

from collections import deque
from typing import Final, Protocol

from rbee.core.errors import RequestNotFound
from rbee.core.usage import Underway, Usage
from rbee.gateway.exchange import now

LIMIT: Final = 1000
"""How many of those that have ended are kept."""


class Watched(Protocol):
    """One request that is under way."""

    def look(self, now: float) -> Underway: ...
    def cancel(self) -> None: ...
    def broken(self) -> None: ...


class RequestLog:
    """Clients choose ids, so two requests may have the same one: they are told apart by themselves."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._underway: dict[Watched, None] = {}
        self._ended: deque[Usage] = deque(maxlen=limit)

    def begin(self, request: Watched) -> None:
        self._underway[request] = None

    def end(self, request: Watched) -> None:
        """*request* is over; it may never have begun."""
        self._underway.pop(request, None)

    def keep(self, usage: Usage) -> None:
        """What one that has ended took."""
        self._ended.append(usage)

    def __len__(self) -> int:
        return len(self._underway)

    def underway(self) -> list[Underway]:
        """Those that have not ended, in order of arrival."""
        time = now()
        return [request.look(time) for request in self._underway]

    def ended(self) -> list[Usage]:
        """The last ones that have ended, the newest first."""
        return list(reversed(self._ended))

    def cancel(self, request_id: str) -> list[Underway]:
        """End all requests with this id; gives what they were. Raises RequestNotFound where none is under way."""
        time = now()
        found = [(request, look) for request in self._underway if (look := request.look(time)).request_id == request_id]
        if not found:
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
