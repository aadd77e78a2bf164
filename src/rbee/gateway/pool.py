"""The connections to upstreams that there are, and those that are kept for the next request."""

import sys
from collections.abc import Container
from time import perf_counter
from typing import Final

from rbee.gateway.upstream import Address, Asker, Request, Upstream

IDLE_LIMIT: Final = 4.0
"""Seconds; llama.cpp's server and uvicorn close an idle connection after 5."""

GONE_GRACE: Final = 1.0
"""Seconds in which what a worker that is gone had written is still read; then its connections are ended, whoever
holds their other side."""

STALE_LIMIT: Final = 0.05
"""Seconds after a request was written in which the end of a kept connection means that it had ended before. Later,
the upstream may have read the request, and worked on it."""


class Pool:
    """Connections by address: kept ones to use again, the youngest first.

    ``limit``: at so many, a kept one is ended for each new one.
    """

    def __init__(self, stale_limit: float = STALE_LIMIT, gone_grace: float = GONE_GRACE) -> None:
        self.stale_limit = stale_limit
        self.gone_grace = gone_grace
        self.limit = sys.maxsize
        self._idle: dict[Address, list[Upstream]] = {}
        self._open: set[Upstream] = set()
        self._ready: Container[Address] | None = None

    def ask(self, address: Address, request: Request, asker: Asker, *, fresh: bool = False) -> Upstream:
        """Send *request* on a kept connection, or a new one; *fresh*: on a new one in any case."""
        kept = self._idle.get(address)
        if kept and not fresh and perf_counter() - kept[-1].idle_since < IDLE_LIMIT:
            upstream = kept.pop()
        else:
            if len(self._open) >= self.limit:
                self._end_idle()
            upstream = Upstream(self, address)
            self._open.add(upstream)
        upstream.ask(request, asker)
        return upstream

    def _end_idle(self) -> None:
        kept = next((kept for kept in self._idle.values() if kept), None)
        if kept is not None:
            kept[0].abandon()

    def keep(self, upstream: Upstream) -> None:
        if not self._may_keep(upstream.address):
            upstream.abandon()
            return
        upstream.idle_since = perf_counter()
        self._idle.setdefault(upstream.address, []).append(upstream)

    def forget(self, upstream: Upstream) -> None:
        self._open.discard(upstream)
        kept = self._idle.get(upstream.address)
        if kept and upstream in kept:
            kept.remove(upstream)

    def sweep(self, now: float) -> None:
        """End what has been idle for too long."""
        for address in list(self._idle):
            for upstream in list(self._idle[address]):
                if now - upstream.idle_since >= IDLE_LIMIT:
                    upstream.abandon()
            if not self._idle[address]:
                del self._idle[address]

    def retain(self, ready: Container[Address], known: Container[Address]) -> None:
        """Keep idle connections only to *ready* TCP addresses, and busy ones only to *known* ones.

        Whoever is not among them is gone, and others may get the port.
        """
        self._ready = ready
        for address in list(self._idle):
            if not self._may_keep(address):
                for upstream in self._idle.pop(address):
                    upstream.abandon()
        for upstream in self._open:
            if isinstance(upstream.address, tuple) and upstream.address not in known:
                upstream.part_soon()

    def _may_keep(self, address: Address) -> bool:
        return isinstance(address, str) or self._ready is None or address in self._ready

    def idle(self, address: Address) -> int:
        return len(self._idle.get(address, ()))

    def __len__(self) -> int:
        return len(self._open)

    def close(self) -> None:
        """End all connections."""
        for upstream in list(self._open):
            upstream.abandon()
        self._idle.clear()
