"""One task owns one worker: events in, commands out."""

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus

from rbee.core import events
from rbee.core.errors import DoesNotFit, IllegalTransition, RequestError
from rbee.core.events import Command, Event
from rbee.core.exits import Exit, ExitReason
from rbee.core.launch import Launch, StoredWorker, Telemetry
from rbee.core.liveness import seen
from rbee.core.routing import Route, RouteTable, Standing
from rbee.core.worker import Worker, WorkerState, advance
from rbee.hive import rows
from rbee.hive.announcements import is_on_loopback
from rbee.hive.journal import Journal, Transition
from rbee.hive.ports import Node, Process, Store
from rbee.hive.registry import Record
from rbee.hive.restarts import Restarts
from rbee.hive.row import Row
from rbee.hive.sweeping import Sweeping

log = structlog.get_logger(__name__)

LAST_LOG_LINES: Final = 20
"""Lines of a failed worker's log that are kept to be shown."""
WATCH_RETRY_DELAY: Final = 1.0
"""Seconds until it is tried again to look at what could not be looked at, for want of a descriptor perhaps."""
MAX_LOOKS: Final = 5
"""Looks for the process of a stored worker for which the whole hive waits."""
MAX_PATIENCE: Final = 6
"""Times the grace, at most, between two kills of what does not end."""
_ANNOUNCEMENTS: Final = (events.AnnouncedLoading, events.AnnouncedReady, events.AnnouncedFailed)
_WAITING: Final = (WorkerState.BACKOFF, WorkerState.FAILED)
_ASKED_TO_END: Final = events.GiveUp("")


@dataclass(slots=True)
class Patience:
    """Seconds that an end may take; shared by all supervisors, so that a shutdown can shorten it for all at once."""

    drain_timeout: float
    term_grace: float
    stale_after: float


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every supervisor works with. The pool builds it once."""

    node: Node
    store: Store
    routes: RouteTable
    journal: Journal
    patience: Patience
    wall_clock: Callable[[], datetime]
    launch: Callable[[Record], Awaitable[Launch]]
    engine_key: Callable[[Worker], str]
    served: Callable[[Record], tuple[str, ...]]
    folds: Callable[[Record], bool]
    answers: Callable[[StoredWorker], Awaitable[bool]]
    restarts: Restarts
    on_illegal_event: Callable[[], None]
    on_gone: Callable[[str], None]
    on_row_left: Callable[[str], None]


class Supervisor:
    """Single writer of its worker; everyone else only sends events.

    *stored*: the row of a worker that an earlier hive started, which is to be taken over.
    """

    def __init__(self, record: Record, around: Surroundings, stored: StoredWorker | None = None) -> None:
        self.record = record
        self._around = around
        self._stored = stored
        self._process: Process | None = None
        self._watched_engine: int | None = None
        self._tasks: TaskGroup | None = None
        self._load_changed: anyio.Event | None = None
        self._draining = anyio.CancelScope()
        self._waiting = anyio.CancelScope()
        self._patience_left = anyio.CancelScope()
        self._kills = 0
        self._refusals = 0
        worker_id = record.worker_id
        self._row = Row(worker_id, around.store, self._content_of_row, around.on_row_left)
        self._sweeping = Sweeping(worker_id, around.node, self._tell_of_leftovers)
        self._ended = anyio.Event()
        self._left_running = False
        self.judged = anyio.Event()
        """Set once it is known whether a stored worker could be taken over, or it is gone altogether."""
        self.forgotten = anyio.Event()

    @property
    def worker(self) -> Worker:
        return self.record.worker

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Own the worker until it is gone. ``started`` means that events are taken from now on."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            self._publish(self._route(self.worker))
            if self.worker.spec.external:
                self._watch_external()
            elif self._stored is not None:
                tasks.start_soon(self._adopt, self._stored)
            else:
                tasks.start_soon(self._spawn)
            task_status.started()
            await self._ended.wait()
            tasks.cancel_scope.cancel()
        self.judged.set()
        if self._left_running:
            self._around.routes.withdraw(self.record.worker_id)
            return
        if self._sweeping.is_due:
            # Should this hive end before nothing is left, the next one goes on with it.
            await self.save()
            await self._sweeping.finish(self.worker.incarnation)
        with anyio.CancelScope(shield=True):
            # The row first: without its folder nobody could tell any more how the worker ended.
            await self._row.forget()
            await self._around.node.forget(self.record.worker_id)

    def leave(self) -> None:
        """Let go of the worker as it is: its process lives on, its row tells the next hive of it.

        One that is gone already is not left: what remains to be done is to forget it.
        """
        if self.worker.state is not WorkerState.GONE:
            self._left_running = True
            self._ended.set()

    def take(self, event: Event) -> Worker:
        """Apply *event* now. Raises IllegalTransition, and changes nothing then."""
        before, now = self.worker, anyio.current_time()
        after, commands = advance(before, event, now)
        # Made before anything is stored: an event is taken whole, or not at all.
        route = self._route(after)
        self.record.worker = after
        if isinstance(event, _ANNOUNCEMENTS):
            self.record.unannounced = False
        self._publish(route)
        self._note(before, after, event, now)
        for command in commands:
            self._perform(command)
        if after.engine_pid is not None and not after.spec.external:
            self._watch_engine(after.engine_pid)
        if not after.spec.external and rows.told(before) != rows.told(after):
            self._soon(self._row.save)
        if after.state is WorkerState.GONE:
            self._around.on_gone(self.record.worker_id)
            self._ended.set()
        return after

    def fire(self, event: Event) -> None:
        """Apply an event from inside the hive: an illegal one ends this worker and never the hive."""
        try:
            self.take(event)
        except IllegalTransition as error:
            log.error("illegal_event", worker_id=self.record.worker_id, reason=error.message)  # noqa: TRY400
            self._around.on_illegal_event()
            self._end_after_illegal_event()

    def _end_after_illegal_event(self) -> None:
        try:
            self.take(events.Condemned(ExitReason.CRASHED, "an event that its state does not allow"))
        except IllegalTransition:
            # It is being ended or has no process already: there is nothing left to do about it.
            log.info("illegal_event_ignored", worker_id=self.record.worker_id, state=self.worker.state)

    def hurry(self) -> None:
        """The patience has become shorter: a drain that has begun ends by it, too."""
        self._draining.deadline = min(
            self._draining.deadline, anyio.current_time() + self._around.patience.drain_timeout
        )

    def ask_now(self) -> None:
        """Whether the worker may be started is to be asked now, not after its delay."""
        self._waiting.cancel()

    async def wait_swept(self) -> None:
        """Return once nothing is left of a life that has ended."""
        async with self._sweeping.lock:
            pass

    def ask_if_refused(self) -> None:
        """Memory may be free that this worker was refused for."""
        if self.record.is_refused:
            self.ask_now()

    def load_changed(self) -> None:
        """The number of requests in flight may have changed. Each request that ends says so: without a waiter it
        costs nothing."""
        changed, self._load_changed = self._load_changed, None
        if changed is not None:
            changed.set()

    async def wait_idle(self) -> None:
        """Return once no request is in flight."""
        while self._around.routes.in_flight(self.record.worker_id) > 0:
            self._load_changed = self._load_changed or anyio.Event()
            await self._load_changed.wait()

    def _route(self, worker: Worker) -> Route:
        host, port = _address(worker.url)
        return Route(
            worker_id=worker.spec.worker_id,
            model_ref=worker.spec.model_ref,
            alias=worker.spec.alias,
            standing=worker.prospect,
            host=host,
            port=port,
            key=self._around.engine_key(worker),
            slots=max(1, worker.slots),
            message=worker.message,
            served=self._around.served(self.record),
            folds=self._around.folds(self.record),
        )

    def _publish(self, route: Route) -> None:
        if self.worker.state is WorkerState.GONE:
            self._around.routes.withdraw(self.record.worker_id)
        else:
            self._around.routes.publish(route)

    def _note(self, before: Worker, after: Worker, event: Event, now: float) -> None:
        journal = self._around.journal
        journal.append(
            Transition(
                number=journal.last_number + 1,
                at=self._around.wall_clock(),
                worker_id=after.spec.worker_id,
                model_ref=after.spec.model_ref,
                incarnation=after.incarnation,
                event=type(event).__name__,
                before=before.state,
                after=after.state,
                message=after.message,
                seconds=max(0.0, now - before.since),
                was_ready=before.ready_since is not None,
                exit=after.last_exit if after.last_exit is not before.last_exit else None,
            )
        )

    def _perform(self, command: Command) -> None:
        match command:
            case events.Spawn():
                self._begin_life()
                self._soon(self._spawn)
            case events.WaitForDrain():
                self._soon(self._drain, self.worker.incarnation)
            case events.Terminate():
                if self._process is not None:
                    self._process.terminate()
                self._begin_grace()
            case events.AwaitExit():
                self._begin_grace()
            case events.Kill():
                self._kills += 1
                if self._process is not None:
                    self._process.kill()
                self._soon(self._sweeping.kill, self.worker.incarnation)
                # Should it not end of that, it is killed again: nothing stays in this state for ever unseen.
                self._begin_grace()
            case events.WaitForBackoff(delay):
                self._soon(self._backoff, delay, self.worker.incarnation)

    def _soon(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
        assert self._tasks is not None, "events are taken only while run() runs"
        self._tasks.start_soon(work, *arguments)

    def _begin_life(self) -> None:
        record, self._watched_engine, self._kills = self.record, None, 0
        record.vital = seen(anyio.current_time(), self._around.patience.stale_after)
        record.healthy, record.telemetry = True, Telemetry()
        record.footprint, record.failed_checks, record.unannounced = None, 0, False

    # A process: started or taken over, waited for, swept up after.

    async def _spawn(self) -> None:
        incarnation = self.worker.incarnation
        await self._around.restarts.wait_until_allowed()
        async with self._sweeping.lock:
            pass  # What the life before has left is gone, or it would hold memory and port.
        try:
            launch = await self._around.launch(self.record)
            # Row, fork and pid belong together: a cancellation between them would leave a process that nobody knows.
            with anyio.CancelScope(shield=True):
                await self._row.must_save()
                if self.worker.state is not WorkerState.STARTING:
                    self._give_up_the_fork()
                    return
                process = await self._fork(launch)
        except (OSError, RequestError) as error:
            self._refusals += 1
            if isinstance(error, DoesNotFit) and self.worker.state is WorkerState.STARTING:
                self.fire(self._around.restarts.refused(error.message))
                return
            decision = self._around.restarts.postpone(self.worker, self._refusals)
            self.fire(events.SpawnFailed(str(error), decision))
            return
        self._refusals = 0
        await self._wait_for_end(process, incarnation)

    def _give_up_the_fork(self) -> None:
        worker = self.worker
        asked = worker.forget or worker.again
        decision = _ASKED_TO_END if asked else self._around.restarts.postpone(worker, 1)
        self.fire(events.SpawnFailed("it was ended before it was started", decision))

    async def _fork(self, launch: Launch) -> Process:
        self._process = process = await self._around.node.spawn(launch)
        self.record.vital = seen(anyio.current_time(), self._around.patience.stale_after)
        self.fire(events.Spawned(process.identity.pid))
        # Should that fail and this hive be killed, the next one finds the process by the mark that it carries.
        await self.save()
        return process

    async def _adopt(self, row: StoredWorker) -> None:
        """Take over what an earlier hive has started, or treat it as ended."""
        process = self._process = await self._find(row)
        if process is not None:
            self.fire(events.Spawned(process.identity.pid))
        resumed = rows.resumed(row)
        if resumed is not None and self.worker.ending is None:
            self.fire(resumed)
        if process is None:
            exit_ = row.last_exit or await self._around.node.last_word(self.record.worker_id, row.incarnation)
            await self._process_ended(exit_, row.incarnation, unseen=rows.was_unseen(row))
            return
        if resumed is None:
            self._soon(self._judge, row)
        else:
            self.judged.set()
        if row.identity is None:
            await self.save()
        await self._wait_for_end(process, row.incarnation)

    async def _find(self, row: StoredWorker) -> Process | None:
        looks = 0
        while True:
            try:
                return await self._around.node.adopt(row)
            except PermissionError:
                return None  # Another user's process has its number by now.
            except OSError as error:
                log.error("worker_not_adopted", worker_id=self.record.worker_id, reason=str(error))  # noqa: TRY400
            looks += 1
            if looks == MAX_LOOKS:
                self.judged.set()  # It is looked for on, but the others need not wait for it.
            await anyio.sleep(WATCH_RETRY_DELAY)

    async def _judge(self, row: StoredWorker) -> None:
        """Whether the process that was found is the worker: it answers to its key, or it speaks for itself."""
        since = self.record.vital.since
        answered = bool(row.url) and await self._around.answers(row)
        if self.worker.state is WorkerState.STARTING and self.worker.incarnation == row.incarnation:
            if answered or not row.url or self.record.vital.since > since:
                self.record.unannounced = not answered
                url = row.url if answered else ""
                self.fire(events.Adopted(url, row.engine_pid if answered else None, row.slots, serving=answered))
            else:
                reason = f"it did not answer to its key at {row.url} when this hive started"
                self.fire(events.Condemned(ExitReason.UNHEALTHY, reason))
        self.judged.set()

    async def _wait_for_end(self, process: Process, incarnation: int) -> None:
        exit_ = await process.wait()
        self._process = None
        await self._process_ended(exit_, incarnation)

    async def _process_ended(self, exit_: Exit, incarnation: int, *, unseen: bool = False) -> None:
        """*unseen*: it ended while no hive ran."""
        self._sweeping.process_ended()
        async with self._sweeping.lock:
            is_routed = self.worker.standing is not Standing.OUT
            if is_routed:
                self.fire(self._exited(exit_, unseen))
            # That nothing of it is left may take long, and nobody else has to wait for that.
            self.judged.set()
            await self._sweeping.finish(incarnation)
            if not is_routed:
                # Nobody waits to hear of its end, so it is told when it is one: nothing is left.
                self.fire(self._exited(exit_, unseen))
            if self.worker.state in _WAITING:
                self._around.restarts.note_log(self.worker, await self._last_lines())

    def _exited(self, exit_: Exit, unseen: bool) -> events.Exited:
        worker, restarts = self.worker, self._around.restarts
        if worker.forget or worker.again:
            return events.Exited(exit_, _ASKED_TO_END)
        if unseen and not rows.is_fault(exit_):
            seen_by_nobody = replace(exit_, message=exit_.message or "it ended while no hive ran")
            return events.Exited(seen_by_nobody, restarts.resume(worker))
        return events.Exited(exit_, restarts.decide(worker, exit_))

    async def _last_lines(self) -> Sequence[str]:
        try:
            return await self._around.node.tail(self.record.worker_id, LAST_LOG_LINES)
        except OSError as error:
            return [f"(its log cannot be read: {error})"]

    def _tell_of_leftovers(self, reason: str) -> bool:
        waits_for_it = self.worker.state in (WorkerState.STARTING, WorkerState.STOPPING)
        if waits_for_it:
            self.fire(events.SweepFailed(reason))
        return waits_for_it

    async def save(self) -> None:
        """Write down what the next hive must know; a worker that was started by hand tells it itself."""
        if not self.worker.spec.external:
            await self._row.save()

    def _content_of_row(self) -> StoredWorker:
        identity = self._process.identity if self._process is not None else None
        return rows.row_of(self.record, identity)

    # Waiting.

    async def _drain(self, incarnation: int) -> None:
        with anyio.move_on_after(self._around.patience.drain_timeout) as self._draining:
            await self.wait_idle()
        if self.worker.state is WorkerState.DRAINING and self.worker.incarnation == incarnation:
            self.fire(events.DrainEnded())

    def _begin_grace(self) -> None:
        """One grace at a time: each command gives a new one."""
        self._patience_left.cancel()
        self._patience_left = anyio.CancelScope()
        self._soon(self._grace, self._patience_left, self.worker.incarnation)

    async def _grace(self, patience_left: anyio.CancelScope, incarnation: int) -> None:
        with patience_left:
            # What SIGKILL does not end is in the hands of the kernel: it is asked less and less often.
            await anyio.sleep(self._around.patience.term_grace * max(1, min(self._kills, MAX_PATIENCE)))
            if self.worker.state is WorkerState.STOPPING and self.worker.incarnation == incarnation:
                self.fire(events.GraceEnded(self._kills))

    async def _backoff(self, delay: float, incarnation: int) -> None:
        with anyio.CancelScope() as self._waiting:
            await anyio.sleep(delay)
        restarts = self._around.restarts
        await restarts.wait_until_allowed()
        if self.worker.state not in _WAITING or self.worker.incarnation != incarnation:
            return
        refusal = await restarts.ask(self.worker)
        if self.worker.state not in _WAITING or self.worker.incarnation != incarnation:
            return
        if refusal is None:
            restarts.begin(self.worker)
        self.fire(refusal or events.BackoffEnded())

    def _watch_engine(self, pid: int) -> None:
        if pid == self._watched_engine:
            return
        self._watched_engine = pid
        self._soon(self._await_engine, pid, self.worker.incarnation)

    async def _await_engine(self, pid: int, incarnation: int) -> None:
        engine = await self._hold(pid)
        if engine is not None:
            await engine.wait()
        ended_by_itself = self.worker.incarnation == incarnation and self.worker.engine_pid == pid
        # While it loads nothing is routed to it, and its keeper may try another port with another engine.
        if ended_by_itself and self.worker.state in (WorkerState.READY, WorkerState.DRAINING):
            self.fire(events.EngineExited())

    async def _hold(self, pid: int) -> Process | None:
        """A process to watch, None when it is gone. One that cannot be looked at now is no dead one."""
        while True:
            try:
                return self._around.node.watch(pid)
            except OSError as error:
                log.error("process_not_watched", worker_id=self.record.worker_id, pid=pid, reason=str(error))  # noqa: TRY400
                await anyio.sleep(WATCH_RETRY_DELAY)

    def _watch_external(self) -> None:
        worker = self.worker
        if worker.pid is not None and is_on_loopback(worker.url):
            self._soon(self._await_external, worker.pid)

    async def _await_external(self, pid: int) -> None:
        process = await self._hold(pid)
        if process is None:
            return
        exit_ = await process.wait()
        if self.worker.state in (WorkerState.LOADING, WorkerState.READY, WorkerState.DRAINING):
            self.fire(events.Exited(exit_, events.GiveUp("")))


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 0
