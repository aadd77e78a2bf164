"""One inference request: read, routed, perhaps waiting, relayed, perhaps asked again, counted.

Whatever happens, its worker's slot is given back once and its usage is told once.
"""

from enum import Enum
from time import time
from typing import TYPE_CHECKING, Final

import structlog

from rbee.core import affinity
from rbee.core.auth import ANYBODY, Principal
from rbee.core.errors import (
    ModelNotFound,
    NoReadyWorker,
    QueueTimeout,
    RequestCancelled,
    RequestError,
    WorkerLost,
    status_of,
)
from rbee.core.queueing import RETRY_AFTER
from rbee.core.routing import NOBODY, Activity, Route, Standing, least_loaded, takers
from rbee.core.usage import RequestState, Underway
from rbee.gateway import asked, beginnings, faults, outgoing
from rbee.gateway.account import Account
from rbee.gateway.endpoints import INFERENCE
from rbee.gateway.exchange import Relay, now
from rbee.gateway.folded import FoldedAnswer
from rbee.gateway.head import RequestHead
from rbee.gateway.lease import Lease
from rbee.gateway.ports import Client
from rbee.gateway.quota import Seat
from rbee.gateway.rewrite import for_engine
from rbee.gateway.upstream import AnswerHead, Request

if TYPE_CHECKING:
    from rbee.gateway.door import FrontDoor

log = structlog.get_logger(__name__)

COMMENT_INTERVAL: Final = 5.0
"""Seconds between two comments on a stream that waits."""

LOADING_DELAY: Final = 0.25
"""Seconds before a worker that answered 503, or has just gone away, is asked again: by then the hive knows of it."""

MAX_LOSSES: Final = 2
"""A request is sent again once, so the second lost worker ends it."""

UNKNOWN_MODEL: Final = "other"
"""Where requests for names that nobody knows are counted, and wait: one line, one series of metrics."""

ENGINE_ERROR: Final = "engine_error"
"""What is recorded of an engine's own error that had to become an event: its status is told nowhere else."""

MAX_NAMES: Final = 20
MAX_FOREIGN_ANSWER: Final = 65536
"""Bytes kept of an answer that should have been a stream."""


class Phase(Enum):
    NEW = "new"
    WAITING = "waiting"
    ASKED = "asked"
    ANSWERING = "answering"
    CLOSED = "closed"


def comment_due(received_at: float, commented_at: float | None, keepalive_after: float, now: float) -> bool:
    """Whether a stream without an answer since *received_at* needs a sign of life, the last one at *commented_at*."""
    if commented_at is None:
        return now - received_at >= keepalive_after
    return now - commented_at >= COMMENT_INTERVAL


class Inference(Relay):
    """Lives from the end of the request to the end of its answer."""

    # How each one begins, said once for all: most of it stays so for most requests.
    _phase = Phase.NEW
    _body = b""
    _name = ""
    _ticket = 0
    _known = False
    _seat: Seat | None = None
    _lease: Lease | None = None
    _request: Request | None = None
    _lost: tuple[str, ...] = ()
    _avoid: str | None = None
    _shunned = NOBODY
    _again_at: float | None = None
    _commented_at: float | None = None
    _open_status: int | None = None
    _ends_in_event = False
    _foreign: bytearray | None = None
    _folded: FoldedAnswer | None = None

    def __init__(
        self, door: "FrontDoor", client: Client, head: RequestHead, request_id: str, principal: Principal = ANYBODY
    ) -> None:
        super().__init__(door.pool, client, door.options.stall_timeout)
        self._door = door
        self._head = head
        self._shape, self._needs_slot, self._caches = INFERENCE[head.path]
        self._principal = principal
        self._account = Account(request_id, head.path.decode("ascii"), key=principal.name or None)

    def start(self, body: bytes) -> None:
        began = now()
        self._account.receives(began, time())
        self._body = body
        try:
            self._door.check_open()
            wish = asked.read(body)
            self._name = wish.model
            self._account.stream = wish.stream
            self._seat = self._door.quotas.take(self._principal, began)
        except RequestError as error:
            if self._name:
                self._account.model = self._counted_as(self._door.routes.candidates(self._name))
            self._fail(error)
            return
        self._wish = wish
        self._ticket = self._door.room.ticket()
        self._door.log.begin(self)
        self._route()

    # choosing a worker

    def wake(self) -> None:
        """It waits, and there is a free slot or another worker."""
        self._route()

    def _route(self) -> None:
        """Go to a worker, wait or fail."""
        routes = self._door.routes.candidates(self._name)
        self._account.model = self._counted_as(routes)
        self._known = self._known or bool(routes)
        route = self._choose(routes)
        if route is not None:
            self._forward(route)
        elif any(route.standing is Standing.READY for route in routes):
            self._wait()
        elif any(route.standing is Standing.COMING for route in routes) or (not routes and self._door.adopting):
            # Whoever comes now has a new life.
            self._avoid = self._again_at = None
            self._shunned = NOBODY
            self._wait()
        else:
            self._fail(self._refusal(routes))

    def _choose(self, routes: list[Route]) -> Route | None:
        """The worker that takes it now; None: it must wait."""
        free = takers(routes, slot=self._needs_slot, shunned=self._shunned)
        if len(free) == len(routes) == 1:
            return free[0]
        book = self._door.prefixes
        if free and self._caches and book is not None:
            links = beginnings.links(self._account.model, self._body)
            if links:
                return affinity.choose(book, links, free, excluding=self._avoid)
        return least_loaded(free, excluding=self._avoid)

    def _counted_as(self, routes: list[Route]) -> str:
        return routes[0].model_ref if routes else self._account.model or UNKNOWN_MODEL

    def _refusal(self, routes: list[Route]) -> RequestError:
        if routes:
            reasons = "; ".join(f"{route.worker_id}: {route.message or route.standing}" for route in routes)
            lost = f"Worker '{self._lost[0]}' went away before it answered. " if self._lost else ""
            message = f"{lost}No worker of '{self._name}' can take requests ({reasons})."
            return NoReadyWorker(message, retry_after=RETRY_AFTER)
        if self._known:
            message = f"The worker of '{self._name}' was removed before it answered this request."
            return NoReadyWorker(message, retry_after=RETRY_AFTER)
        names = self._door.model_names(MAX_NAMES)
        there = f"There are: {', '.join(names)}" if names else "No model is loaded: POST /v1/workers/spawn loads one"
        shown = self._name[:200]
        return ModelNotFound(f"There is no model '{shown}' here. {there}.", models=names)

    def _wait(self) -> None:
        self._phase = Phase.WAITING
        try:
            self._door.check_open()
            self._door.room.join(
                self._account.model, self._name, self._ticket, self, shunned=self._shunned, admitted=self._was_let_in
            )
        except RequestError as error:
            self._fail(error)
            return
        self._account.waits(now())

    @property
    def _was_let_in(self) -> bool:
        """Whether it waited, or a worker was asked."""
        return self._account.waits_since is not None or self._account.worker_id is not None

    def _forward(self, route: Route) -> None:
        self._door.room.leave(self._ticket)
        try:
            out = outgoing.for_worker(route, self._head.path, self._wish, self._body)
        except RequestError as error:
            self._fail(error)
            return
        self._phase = Phase.ASKED
        self._lease = Lease(self._door.routes, route, slot=self._needs_slot)
        self._activity: Activity = self._lease.activity
        self._address = (route.host, route.port)
        self._key = route.key
        head = for_engine(self._head, route, len(out.body), self._account.request_id)
        self._request = Request(head, out.body)
        self._folded = FoldedAnswer(out.folding, self._door.buffer) if out.folding is not None else None
        self._asked_at = now()
        self._account.asks(route.worker_id, self._asked_at)
        self.upstream = self.pool.ask(self._address, self._request, self)

    # the worker's side

    def answered(self, head: AnswerHead | None, data: bytes, done: bool) -> None:
        if done:
            self.upstream = None
        if head is not None and not self._hear(head):
            return
        if data:
            self._activity.relayed_bytes += len(data)
            self._account.adds(data, now())
        if self._folded is not None:
            self._fold(self._folded, data, done)
            return
        if self._foreign is not None:
            self._collect(self._foreign, data, done)
            return
        if done:
            self._account.complete = True
            self._close(self._open_status or 200)
        self.client.send(data, done=done)

    def chunk(self, framed: bytes, start: int) -> None:
        if self._foreign is not None or self._folded is not None:
            self.answered(None, framed[start:-2], done=False)
            return
        self._activity.relayed_bytes += len(framed)
        account = self._account
        if account.first_byte_at is None:
            account.first_byte_at = now()
        account.sample.add(framed[start:-2])
        self.client.send_chunk(framed, start)

    def _hear(self, head: AnswerHead) -> bool:
        """Whether this is an answer, and not a worker's word that it has none."""
        if head.status == 503:
            self._wait_for_load()
            return False
        if head.status in (401, 403):
            self._refuse_for_worker(head.status)
            return False
        self._activity.relayed_bytes += head.size
        if self._folded is not None and not self._folded.begins(head):
            self._folded = None
        if self._folded is None:
            self._begin(head)
        else:
            # It has been sent, and heard: asked again, it is written anew.
            self._request = None
        return True

    def _fold(self, answer: FoldedAnswer, data: bytes, done: bool) -> None:
        """More of a stream whose client wants all of it at once, and has seen nothing yet."""
        try:
            answer.feed(data)
        except RequestError as error:
            self._fail(error)
            return
        if not done:
            return
        whole = answer.end()
        if whole is None:
            self.lost("its stream ended too early", stale=False)
            return
        head, body = whole
        self._account.complete = True
        self._begin(head)
        self._close(head.status)
        self.client.send(body, done=True)

    def lost(self, reason: str, stale: bool) -> None:
        self.upstream = None
        if stale and self._request is not None and self._is_still_there():
            self.upstream = self.pool.ask(self._address, self._request, self, fresh=True)
            return
        worker_id = self._account.worker_id or ""
        log.warning("worker_lost", worker_id=worker_id, request_id=self._account.request_id, reason=reason)
        self._lost += (worker_id,)
        if self._phase is Phase.ANSWERING:
            self._fail(WorkerLost(f"The worker went away in the middle of its answer ({reason})."))
        elif len(self._lost) >= MAX_LOSSES:
            first = self._lost[0]
            twice = f"Worker '{first}' went away twice"
            who = twice if first == worker_id else f"Workers '{first}' and '{worker_id}' went away"
            self._fail(WorkerLost(f"{who} before this request was answered (at last: {reason})."))
        else:
            self._account.loses(now())
            self._shun(worker_id)
            self._route()

    def _is_still_there(self) -> bool:
        """Whether the worker's address is that worker's still, and not that of its next life or of somebody else."""
        route = self._door.routes.routes.get(self._account.worker_id or "")
        return route is not None and (route.host, route.port) == self._address and route.key == self._key

    def _wait_for_load(self) -> None:
        """The worker answered that it is not ready (503): the request goes back to its place."""
        self.leave_upstream()
        self._account.loses(now())
        self._shun(self._account.worker_id or "")
        self._route()

    def _shun(self, worker_id: str) -> None:
        """Give its slot back and ask others: all who have failed this request get their time before the next try."""
        self._avoid = worker_id
        self._shunned |= {worker_id}
        self._again_at = now() + LOADING_DELAY
        self._release()

    def _refuse_for_worker(self, status: int) -> None:
        """Who answers does not take the worker's key: it may be somebody else who has its port now."""
        log.error("worker_refused_key", worker_id=self._account.worker_id, request_id=self._account.request_id)
        self.leave_upstream()
        self.lost(f"it refused this hive's own key with status {status}", stale=False)

    def _begin(self, head: AnswerHead) -> None:
        self._phase = Phase.ANSWERING
        self._request = None
        self._body = b""
        self.client.drop_body()
        is_stream = head.is_stream
        worker_id = (self._account.worker_id or "").encode()
        queue_ms = b"%d" % (self._account.waited * 1000)
        if self._commented_at is None:
            self._open_status = head.status
            self._ends_in_event = is_stream and head.length is None
            own = b"x-rbee-worker: %b\r\nx-rbee-queue-ms: %b\r\n" % (worker_id, queue_ms)
            self.client.begin(head.status, head.lines + own, head.length)
        elif is_stream and head.status == 200:
            self.client.send(b": x-rbee-worker=%b x-rbee-queue-ms=%b\n\n" % (worker_id, queue_ms))
        else:
            self._foreign = bytearray()
            self._foreign_status = head.status

    def _collect(self, answer: bytearray, data: bytes, done: bool) -> None:
        """The client has been promised a stream, and the worker answers something else: it becomes an error event."""
        answer += data[: MAX_FOREIGN_ANSWER - len(answer)]
        if not done:
            return
        event = faults.foreign_event(self._foreign_status, bytes(answer), self._shape)
        if event is None:
            self._fail(WorkerLost(f"The worker answered with status {self._foreign_status} instead of a stream."))
        else:
            self._account.error = ENGINE_ERROR
            self._end_with(event)

    # time and the client's side

    def tick(self, now: float) -> None:
        if self._phase is Phase.WAITING:
            self._tick_waiting(now)
        elif self.has_stalled(now):
            self.leave_upstream()
            self.lost(f"no byte for {self._stall_timeout:g} s", stale=False)
        if self._phase in (Phase.WAITING, Phase.ASKED) and self._account.stream:
            keepalive_after = self._door.options.keepalive_after
            if comment_due(self._account.received_at, self._commented_at, keepalive_after, now):
                self._comment(now)

    def _tick_waiting(self, now: float) -> None:
        timeout = self._door.options.queue_timeout
        if self._account.queue_seconds(now) >= timeout:
            ready = any(route.standing is Standing.READY for route in self._door.routes.candidates(self._name))
            lack = "had a free slot" if ready else "became ready"
            message = f"No worker of '{self._name}' {lack} within {timeout:g} s. Try again later."
            self._fail(QueueTimeout(message, retry_after=self._door.room.expected_wait(self._account.model)))
        elif self._again_at is not None and now >= self._again_at:
            self._door.wake_rested(now)

    def ends_rest(self, now: float) -> bool:
        """Whether those that failed it have had their time: then it may go to any again."""
        if self._again_at is None or now < self._again_at:
            return False
        self._again_at = None
        self._shunned = NOBODY
        return True

    def _comment(self, now: float) -> None:
        if self._commented_at is None:
            self._ends_in_event = True
            self._open_status = 200
            self.client.begin(200, b"content-type: text/event-stream\r\ncache-control: no-cache\r\n", None)
        self._commented_at = now
        self.client.send(b": waiting\n\n")

    def drop(self, status: int) -> None:
        self._close(status)

    def shut(self, error: RequestError) -> None:
        """Waiting is over: the hive stops."""
        self._fail(error)

    # what others see of it, and may do to it

    def look(self, now: float) -> Underway:
        state = RequestState.WAITING if self._phase is Phase.WAITING else RequestState.RUNNING
        return self._account.underway(state, now)

    def cancel(self) -> None:
        self._account.cancelled = True
        self._fail(RequestCancelled("This request was cancelled by an administrator of this server."))

    # the end

    def _fail(self, error: RequestError) -> None:
        self._account.error = error.code
        if self._ends_in_event:
            self._end_with(faults.event(error, self._shape, self._account.request_id))
        elif self._phase is Phase.ANSWERING:
            self._close(self._open_status or status_of(error))
            self.client.abort()
        else:
            self._close(status_of(error))
            self.client.refuse(error)

    def _end_with(self, event: bytes) -> None:
        self._close(self._open_status or 200)
        self.client.close_after()
        self.client.send(event, done=True)

    def _close(self, status: int) -> None:
        if self._phase is Phase.CLOSED:
            return
        # Before the slot is given back: whoever waits for it goes in that call.
        ended = now()
        if self._phase is Phase.ANSWERING and self._needs_slot:
            self._door.room.served(self._account.model, ended - self._asked_at)
        self._phase = Phase.CLOSED
        self._door.room.leave(self._ticket)
        self.leave_upstream()
        self._release()
        if self._seat is not None:
            self._seat.release(ended)
        self._door.log.end(self)
        if self._account.model:
            # Who was not let in would push out those that were: a client may be refused thousands of times a minute.
            self._door.log.close(self._account, status, ended, kept=self._was_let_in)

    def _release(self) -> None:
        """Give back what belonged to one try: the worker's slot, and what was folded of its answer."""
        folded, self._folded = self._folded, None
        if folded is not None:
            folded.release()
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()
