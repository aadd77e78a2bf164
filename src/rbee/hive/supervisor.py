"""One task owns one worker: events in, commands out."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus

from rbee.core import events
from rbee.core.errors import IllegalTransition, RequestError
from rbee.core.events import Command, Event
from rbee.core.exits import Exit, ExitReason
from rbee.core.launch import Launch, StoredWorker
from rbee.core.liveness import seen
from rbee.core.routing import Route, RouteTable
from rbee.core.worker import Worker, WorkerState, advance
from rbee.hive.announcements import is_on_loopback
from rbee.hive.journal import Journal, Transition
from rbee.hive.ports import Node, Process, Store
from rbee.hive.registry import Record

log = structlog.get_logger(__name__)


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
    decide_restart: Callable[[Worker, Exit], events.RestartDecision]
    on_illegal_event: Callable[[], None]
    on_gone: Callable[[str], None]


class Supervisor:
    """Single writer of its worker; everyone else only sends events."""

    def __init__(self, record: Record, around: Surroundings) -> None:
        self.record = record
        self._around = around
        self._process: Process | None = None
        self._watched_engine: int | None = None
        self._tasks: TaskGroup | None = None
        self._load_changed = anyio.Event()
        self._draining = anyio.CancelScope()
        self._gone = anyio.Event()
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
            else:
                tasks.start_soon(self._spawn)
            task_status.started()
            await self._gone.wait()
            tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await self._around.node.forget(self.record.worker_id)
            await self._forget_row()

    def take(self, event: Event) -> Worker:
        """Apply *event* now. Raises IllegalTransition, and changes nothing then."""
        before, now = self.worker, anyio.current_time()
        after, commands = advance(before, event, now)
        # Made before anything is stored: an event is taken whole, or not at all.
        route = self._route(after)
        self.record.worker = after
        self._publish(route)
        self._note(before, after, event, now)
        for command in commands:
            self._perform(command)
        if after.engine_pid is not None and not after.spec.external:
            self._watch_engine(after.engine_pid)
        if after.state is WorkerState.GONE:
            self._around.on_gone(self.record.worker_id)
            self._gone.set()
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

    def load_changed(self) -> None:
        """The number of requests in flight may have changed."""
        self._load_changed.set()

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
                exit=after.last_exit if after.last_exit is not before.last_exit else None,
            )
        )

    def _perform(self, command: Command) -> None:
        tasks = self._tasks
        assert tasks is not None, "events are taken only while run() runs"
        match command:
            case events.Spawn():
                self.record.vital = seen(anyio.current_time(), self._around.patience.stale_after)
                tasks.start_soon(self._spawn)
            case events.WaitForDrain():
                tasks.start_soon(self._drain, self.worker.incarnation)
            case events.Terminate():
                if self._process is not None:
                    self._process.terminate()
                tasks.start_soon(self._grace, self.worker.incarnation)
            case events.AwaitExit():
                tasks.start_soon(self._grace, self.worker.incarnation)
            case events.Kill():
                if self._process is not None:
                    self._process.kill()
                # Should it not end of that, it is killed again: nothing stays in this state for ever unseen.
                tasks.start_soon(self._grace, self.worker.incarnation)
            case events.WaitForBackoff(delay):
                tasks.start_soon(self._backoff, delay, self.worker.incarnation)

    async def _spawn(self) -> None:
        incarnation = self.worker.incarnation
        # Row, fork and pid belong together: a cancellation between them would leave a process that nobody knows.
        with anyio.CancelScope(shield=True):
            process = await self._fork()
        if process is None:
            return
        exit_ = await process.wait()
        self._process = None
        self.fire(events.Exited(exit_, self._around.decide_restart(self.worker, exit_)))
        with anyio.CancelScope(shield=True):
            killed = await self._around.node.sweep(self.record.worker_id, incarnation)
        if killed:
            log.warning("left_behind_processes_killed", worker_id=self.record.worker_id, processes=killed)

    async def _fork(self) -> Process | None:
        worker = self.worker
        row = StoredWorker(worker.spec, worker.incarnation)
        try:
            await self._around.store.save(row)
            launch = await self._around.launch(self.record)
            self._process = await self._around.node.spawn(launch)
        except (OSError, RequestError) as error:
            reason = f"its process could not be started: {error}"
            exit_ = Exit(ExitReason.CRASHED, message=reason)
            self.fire(events.SpawnFailed(reason, self._around.decide_restart(worker, exit_)))
            return None
        identity = self._process.identity
        self.fire(events.Spawned(identity.pid))
        try:
            await self._around.store.save(StoredWorker(worker.spec, worker.incarnation, identity))
        except OSError as error:
            # It serves all the same; should this hive be killed, the keeper hears from the next one that it must end.
            log.error("store_failed", worker_id=worker.spec.worker_id, reason=str(error))  # noqa: TRY400
        return self._process

    async def _forget_row(self) -> None:
        try:
            await self._around.store.forget(self.record.worker_id)
        except OSError as error:
            # A row too many costs the next hive one look at a process that is not there.
            log.error("store_failed", worker_id=self.record.worker_id, reason=str(error))  # noqa: TRY400

    async def _drain(self, incarnation: int) -> None:
        with anyio.move_on_after(self._around.patience.drain_timeout) as self._draining:
            while self._around.routes.in_flight(self.record.worker_id) > 0:
                self._load_changed = anyio.Event()
                await self._load_changed.wait()
        if self.worker.state is WorkerState.DRAINING and self.worker.incarnation == incarnation:
            self.fire(events.DrainEnded())

    async def _grace(self, incarnation: int) -> None:
        await anyio.sleep(self._around.patience.term_grace)
        if self.worker.state is WorkerState.STOPPING and self.worker.incarnation == incarnation:
            self.fire(events.GraceEnded())

    async def _backoff(self, delay: float, incarnation: int) -> None:
        await anyio.sleep(delay)
        if self.worker.state is WorkerState.BACKOFF and self.worker.incarnation == incarnation:
            self.fire(events.BackoffEnded())

    def _watch_engine(self, pid: int) -> None:
        if pid == self._watched_engine or self._tasks is None:
            return
        self._watched_engine = pid
        self._tasks.start_soon(self._await_engine, pid, self.worker.incarnation)

    async def _await_engine(self, pid: int, incarnation: int) -> None:
        engine = self._around.node.watch(pid)
        if engine is not None:
            await engine.wait()
        ended_by_itself = self.worker.incarnation == incarnation and self.worker.engine_pid == pid
        # While it loads nothing is routed to it, and its keeper may try another port with another engine.
        if ended_by_itself and self.worker.state in (WorkerState.READY, WorkerState.DRAINING):
            self.fire(events.EngineExited())

    def _watch_external(self) -> None:
        worker = self.worker
        is_local = worker.pid is not None and is_on_loopback(worker.url)
        process = self._around.node.watch(worker.pid) if is_local and worker.pid else None
        if process is not None and self._tasks is not None:
            self._tasks.start_soon(self._await_external, process)

    async def _await_external(self, process: Process) -> None:
        exit_ = await process.wait()
        if self.worker.state in (WorkerState.LOADING, WorkerState.READY, WorkerState.DRAINING):
            self.fire(events.Exited(exit_, events.GiveUp("")))


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 0
