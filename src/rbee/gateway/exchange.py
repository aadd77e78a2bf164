"""One request and its answer: those that we answer ourselves, and those that the control API answers."""

from time import perf_counter
from typing import Final

import structlog

from rbee.core.errors import ControlUnavailable
from rbee.gateway.head import RequestHead
from rbee.gateway.pool import Pool
from rbee.gateway.ports import Client
from rbee.gateway.rewrite import Fields, for_control, lines_of
from rbee.gateway.upstream import AnswerHead, Request, Upstream

log = structlog.get_logger(__name__)

RETRY_AFTER: Final = 1.0
"""Seconds; the control API is there within one or two of the daemon's start."""


def control_unavailable() -> ControlUnavailable:
    return ControlUnavailable("The control API does not answer (yet). Try again in a moment.", retry_after=RETRY_AFTER)


class OwnAnswer:
    """An answer that is known already; it waits only for the end of the request."""

    def __init__(self, client: Client, status: int, fields: Fields, body: bytes) -> None:
        self._client = client
        self._answer = (status, fields, body)

    def start(self, body: bytes) -> None:
        status, fields, answer = self._answer
        self._client.begin(status, lines_of(fields), len(answer))
        self._client.send(answer, done=True)

    def tick(self, now: float) -> None:
        """Nothing to wait for."""

    def client_paused(self) -> None: ...
    def client_resumed(self) -> None: ...
    def drop(self, status: int) -> None: ...


class Relay:
    """What every relayed exchange has: one upstream at a time, which a slow client slows down, too."""

    def __init__(self, pool: Pool, client: Client, stall_timeout: float) -> None:
        self.pool = pool
        self.client = client
        self.upstream: Upstream | None = None
        self._stall_timeout = stall_timeout

    def client_paused(self) -> None:
        if self.upstream is not None:
            self.upstream.pause()

    def client_resumed(self) -> None:
        if self.upstream is not None:
            self.upstream.resume()

    def drop(self, status: int) -> None:
        self.leave_upstream()

    def broken(self) -> None:
        self.client.broken()

    def leave_upstream(self) -> None:
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.abandon()

    def has_stalled(self, now: float) -> bool:
        """Whether no byte came for too long, though the client was ready to take it."""
        upstream = self.upstream
        if not self._stall_timeout or upstream is None or upstream.paused:
            return False
        return now - upstream.heard_at >= self._stall_timeout


class ControlRelay(Relay):
    """A request for the control API. Its answers may be streams of events that end when the client leaves."""

    def __init__(self, pool: Pool, client: Client, head: RequestHead, socket_path: str, request_id: str) -> None:
        super().__init__(pool, client, stall_timeout=0.0)
        self._head = head
        self._socket_path = socket_path
        self._request_id = request_id
        self._answering = False

    def start(self, body: bytes) -> None:
        self._request = Request(
            for_control(self._head, len(body), self._request_id), body, is_head=self._head.method == b"HEAD"
        )
        self.upstream = self.pool.ask(self._socket_path, self._request, self)

    def tick(self, now: float) -> None:
        """The control API may take its time: pulling a model takes minutes."""

    def answered(self, head: AnswerHead | None, data: bytes, done: bool) -> None:
        if done:
            self.upstream = None
        if head is not None:
            self._answering = True
            self.client.drop_body()
            self.client.begin(head.status, head.lines, head.length)
        self.client.send(data, done=done)

    def chunk(self, framed: bytes, start: int) -> None:
        self.client.send_chunk(framed, start)

    def lost(self, reason: str, stale: bool) -> None:
        self.upstream = None
        if self._answering:
            self.client.abort()
        elif stale:
            # It never read the request: it is of this process, and had closed the connection as idle.
            self.upstream = self.pool.ask(self._socket_path, self._request, self, fresh=True)
        else:
            log.warning("control_lost", request_id=self._request_id, reason=reason)
            self.client.refuse(control_unavailable())


def now() -> float:
    """Seconds of the performance counter: uvloop's own clock moves in steps of 1 ms."""
    return perf_counter()
