"""A worker's life: every state, every event, every legal transition.

Nothing outside this module computes a worker's next state; nothing inside it performs I/O or reads a clock.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from rbee.core.errors import IllegalTransition
from rbee.core.events import (
    Adopted,
    AnnouncedFailed,
    AnnouncedLoading,
    AnnouncedReady,
    AwaitExit,
    BackoffEnded,
    CircuitOpened,
    Command,
    Condemned,
    DrainEnded,
    EndRequested,
    EngineExited,
    Event,
    Exited,
    GiveUp,
    GraceEnded,
    Kill,
    OpenCircuit,
    RestartAfter,
    RestartDecision,
    RestartRefused,
    RestartRequested,
    Spawn,
    Spawned,
    SpawnFailed,
    SweepFailed,
    Terminate,
    WaitForBackoff,
    WaitForDrain,
    WentStale,
)
from rbee.core.exits import Exit, ExitReason
from rbee.core.routing import Standing


class WorkerState(StrEnum):
    STARTING = "starting"
    """Its process is being spawned, or was and has not called back."""
    LOADING = "loading"
    """It has called back; its engine loads the model."""
    READY = "ready"
    DRAINING = "draining"
    """Out of routing; its requests in flight may end."""
    STOPPING = "stopping"
    """Told to end; its process is still there."""
    BACKOFF = "backoff"
    """No process; waits to be started again."""
    FAILED = "failed"
    """No process (or, for an external one, none left); a person, or the circuit's next try, decides."""
    GONE = "gone"
    """Ended and forgotten; never listed."""


class Restart(StrEnum):
    """When a worker whose process ended is started again."""

    ON_FAILURE = "on_failure"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What was asked for. ``ctx_size``: tokens one request may use; ``idle_timeout``: seconds, None never.

    ``backend``: may be 'auto'; ``device``: None for any.
    """

    worker_id: str
    model_ref: str
    backend: str = "cpu"
    device: int | None = None
    engine: str = "llama-cpp"
    engine_args: tuple[str, ...] = ()
    alias: str | None = None
    ctx_size: int = 4096
    slots: int = 4
    restart: Restart = Restart.ON_FAILURE
    max_memory_bytes: int | None = None
    idle_timeout: float | None = None
    external: bool = False

    def memory_limit(self, general: int) -> int:
        """The most memory that it may have, in bytes: its own limit, or the *general* one where that is smaller."""
        return general if self.max_memory_bytes is None else min(general, self.max_memory_bytes)


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker now. ``since`` is when it came into its state, seconds on the hive's monotonic clock.

    ``ready_since``: when this incarnation became ready, None before that. ``ending`` is why it leaves (None: nobody
    asked it to); with ``forget`` it is gone once its process is, with ``again`` it is started anew at once, and
    ``forced`` means that nobody waits for it any more.
    """

    spec: WorkerSpec
    state: WorkerState = WorkerState.STARTING
    incarnation: int = 1
    since: float = 0.0
    message: str = "Started; waiting for its process to call back."
    pid: int | None = None
    engine_pid: int | None = None
    url: str = ""
    slots: int = 0
    ready_since: float | None = None
    restart_count: int = 0
    last_exit: Exit | None = None
    ending: ExitReason | None = None
    ending_reason: str = ""
    forget: bool = False
    again: bool = False
    forced: bool = False

    @property
    def standing(self) -> Standing:
        return _STANDING[self.state]

    @property
    def prospect(self) -> Standing:
        """Its standing for who asks for it: what may come back after its end is waited for until that is decided."""
        may_return = self.state in (WorkerState.DRAINING, WorkerState.STOPPING) and not self.forget
        return Standing.COMING if may_return and not self.spec.external else self.standing

    def shown_state(self, in_flight: int) -> str:
        """The state's name for people: ``ready`` reads idle or busy, by the requests in flight."""
        if self.state is not WorkerState.READY:
            return str(self.state)
        return "busy" if in_flight > 0 else "idle"

    @property
    def is_watched(self) -> bool:
        """Whether its silence means something: one that is being ended has a grace of its own instead."""
        if self.state is WorkerState.STARTING:
            # Before the fork there is nobody who could speak.
            return self.pid is not None
        return self.state in _WATCHED or (self.spec.external and self.state is WorkerState.FAILED)


S = WorkerState
_STANDING: Final[Mapping[WorkerState, Standing]] = {
    S.STARTING: Standing.COMING,
    S.LOADING: Standing.COMING,
    S.BACKOFF: Standing.COMING,
    S.READY: Standing.READY,
    S.DRAINING: Standing.OUT,
    S.STOPPING: Standing.OUT,
    S.FAILED: Standing.OUT,
    S.GONE: Standing.OUT,
}
ALIVE: Final = frozenset({S.STARTING, S.LOADING, S.READY, S.DRAINING, S.STOPPING})
"""States in which a process may exist, so in which a beat means something."""
_WATCHED: Final = frozenset({S.LOADING, S.READY, S.DRAINING})

TRANSITIONS: Final[Mapping[tuple[WorkerState, type[Event]], frozenset[WorkerState]]] = {
    (S.STARTING, Spawned): frozenset({S.STARTING}),
    (S.STARTING, SpawnFailed): frozenset({S.BACKOFF, S.FAILED}),
    (S.STARTING, Adopted): frozenset({S.LOADING, S.READY}),
    (S.STARTING, AnnouncedLoading): frozenset({S.LOADING}),
    (S.STARTING, AnnouncedReady): frozenset({S.READY}),
    (S.STARTING, AnnouncedFailed): frozenset({S.STOPPING}),
    (S.STARTING, Exited): frozenset({S.BACKOFF, S.FAILED}),
    (S.STARTING, SweepFailed): frozenset({S.STARTING}),
    (S.STARTING, RestartRefused): frozenset({S.BACKOFF}),
    (S.STARTING, WentStale): frozenset({S.STOPPING}),
    (S.STARTING, Condemned): frozenset({S.STOPPING}),
    (S.STARTING, EndRequested): frozenset({S.STOPPING}),
    (S.STARTING, RestartRequested): frozenset({S.STOPPING}),
    # A keeper may call back before the hive has read that its fork returned (seen when the hive was stopped).
    (S.LOADING, Spawned): frozenset({S.LOADING}),
    (S.LOADING, Adopted): frozenset({S.LOADING}),
    (S.LOADING, AnnouncedLoading): frozenset({S.LOADING}),
    (S.LOADING, AnnouncedReady): frozenset({S.READY}),
    (S.LOADING, AnnouncedFailed): frozenset({S.STOPPING, S.FAILED}),
    (S.LOADING, Exited): frozenset({S.BACKOFF, S.FAILED}),
    (S.LOADING, WentStale): frozenset({S.STOPPING, S.GONE}),
    (S.LOADING, Condemned): frozenset({S.STOPPING}),
    (S.LOADING, EndRequested): frozenset({S.STOPPING, S.GONE}),
    (S.LOADING, RestartRequested): frozenset({S.STOPPING}),
    (S.READY, Spawned): frozenset({S.READY}),
    (S.READY, Adopted): frozenset({S.READY}),
    (S.READY, AnnouncedReady): frozenset({S.READY}),
    (S.READY, AnnouncedFailed): frozenset({S.STOPPING, S.FAILED}),
    (S.READY, EngineExited): frozenset({S.STOPPING}),
    (S.READY, Exited): frozenset({S.BACKOFF, S.FAILED}),
    (S.READY, WentStale): frozenset({S.STOPPING, S.GONE}),
    (S.READY, Condemned): frozenset({S.DRAINING}),
    (S.READY, EndRequested): frozenset({S.DRAINING, S.STOPPING, S.GONE}),
    (S.READY, RestartRequested): frozenset({S.DRAINING}),
    (S.DRAINING, Spawned): frozenset({S.DRAINING}),
    (S.DRAINING, AnnouncedFailed): frozenset({S.STOPPING, S.GONE}),
    (S.DRAINING, EngineExited): frozenset({S.STOPPING}),
    (S.DRAINING, DrainEnded): frozenset({S.STOPPING, S.GONE}),
    (S.DRAINING, Exited): frozenset({S.GONE, S.STARTING, S.BACKOFF, S.FAILED}),
    (S.DRAINING, WentStale): frozenset({S.STOPPING, S.GONE}),
    (S.DRAINING, EndRequested): frozenset({S.DRAINING, S.STOPPING, S.GONE}),
    (S.DRAINING, RestartRequested): frozenset({S.DRAINING}),
    (S.STOPPING, Spawned): frozenset({S.STOPPING}),
    (S.STOPPING, SpawnFailed): frozenset({S.GONE, S.STARTING, S.BACKOFF, S.FAILED}),
    (S.STOPPING, AnnouncedFailed): frozenset({S.STOPPING}),
    (S.STOPPING, EngineExited): frozenset({S.STOPPING}),
    (S.STOPPING, Exited): frozenset({S.GONE, S.STARTING, S.BACKOFF, S.FAILED}),
    (S.STOPPING, SweepFailed): frozenset({S.STOPPING}),
    (S.STOPPING, GraceEnded): frozenset({S.STOPPING}),
    (S.STOPPING, EndRequested): frozenset({S.STOPPING}),
    (S.STOPPING, RestartRequested): frozenset({S.STOPPING}),
    (S.BACKOFF, BackoffEnded): frozenset({S.STARTING}),
    (S.BACKOFF, RestartRefused): frozenset({S.BACKOFF}),
    (S.BACKOFF, CircuitOpened): frozenset({S.FAILED}),
    (S.BACKOFF, EndRequested): frozenset({S.GONE}),
    (S.BACKOFF, RestartRequested): frozenset({S.STARTING}),
    (S.FAILED, BackoffEnded): frozenset({S.STARTING}),
    (S.FAILED, RestartRefused): frozenset({S.BACKOFF}),
    (S.FAILED, CircuitOpened): frozenset({S.FAILED}),
    (S.FAILED, EndRequested): frozenset({S.GONE}),
    (S.FAILED, RestartRequested): frozenset({S.STARTING}),
    (S.FAILED, WentStale): frozenset({S.GONE}),
}

Step = tuple[Worker, tuple[Command, ...]]


def advance(worker: Worker, event: Event, now: float) -> Step:
    """The worker after *event*, and what the shell must now do.

    Raises IllegalTransition for a pair that is not in TRANSITIONS, for a restart of an external worker (its
    process is not ours), and for what only an external worker can do.
    """
    if (worker.state, type(event)) not in TRANSITIONS or not _possible(worker, event):
        raise IllegalTransition(
            f"Worker '{worker.spec.worker_id}' cannot take '{type(event).__name__}' while it is {worker.state}.",
            state=str(worker.state),
            event=type(event).__name__,
        )
    after, commands = _RULES[type(event)](worker, event)
    if after.state is not worker.state:
        after = replace(after, since=now, ready_since=now if after.state is S.READY else after.ready_since)
    return after, commands


_OF_OUR_OWN: Final = (
    *(Spawned, SpawnFailed, Adopted, EngineExited, SweepFailed, Condemned),
    *(RestartRequested, BackoffEnded, CircuitOpened, RestartRefused),
)


def _possible(worker: Worker, event: Event) -> bool:
    if worker.spec.external:
        # Its process was there before we heard of it, and is never ours to end or to start again.
        ours = (S.STARTING, S.STOPPING, S.BACKOFF)
        return worker.state not in ours and not isinstance(event, _OF_OUR_OWN)
    return not (worker.state is S.FAILED and isinstance(event, WentStale))


def _spawned(worker: Worker, event: Spawned) -> Step:
    known = replace(worker, pid=event.pid)
    # A worker that was told to end while its process was being forked must be ended now that there is one.
    if worker.state is S.STOPPING:
        return known, (Kill() if worker.forced else Terminate(),)
    return known, ()


def _spawn_failed(worker: Worker, event: SpawnFailed) -> Step:
    exit_ = Exit(
        reason=worker.ending or ExitReason.CRASHED, message=f"its process could not be started: {event.reason}"
    )
    after, commands = _without_process(worker, exit_, event.decision)
    if after.state is S.BACKOFF and isinstance(event.decision, RestartAfter):
        delay = event.decision.delay
        after = replace(after, message=f"Not started, tried again in {delay:.1f} s: {event.reason.rstrip('.')}.")
    return after, commands


def _adopted(worker: Worker, event: Adopted) -> Step:
    if worker.state is not S.STARTING:
        return worker, ()  # It has announced itself meanwhile, which says all of this and more.
    known = replace(worker, url=event.url, engine_pid=event.engine_pid, slots=event.slots)
    if event.serving:
        return replace(known, state=S.READY, message="Ready."), ()
    message = "Started by an earlier hive; it is expected to say where it serves with its next heartbeat."
    return replace(known, state=S.LOADING, message=message), ()


def _announced_loading(worker: Worker, event: AnnouncedLoading) -> Step:
    return _announced(worker, event, S.LOADING, "Loading its model; requests for it wait."), ()


def _announced_ready(worker: Worker, event: AnnouncedReady) -> Step:
    return _announced(worker, event, S.READY, "Ready."), ()


def _announced(worker: Worker, event: AnnouncedLoading | AnnouncedReady, state: WorkerState, message: str) -> Worker:
    return replace(
        worker,
        state=state,
        message=message,
        url=event.url,
        pid=event.pid,
        engine_pid=event.engine_pid if event.engine_pid is not None else worker.engine_pid,
        slots=event.slots,
    )


def _announced_failed(worker: Worker, event: AnnouncedFailed) -> Step:
    if worker.spec.external:
        exit_ = Exit(reason=ExitReason.CRASHED, message=event.reason)
        return _external_out(worker, exit_), ()
    if worker.state is S.STOPPING:
        return replace(worker, ending_reason=worker.ending_reason or event.reason), ()
    cause = worker.ending or ExitReason.CRASHED
    return _stopping(replace(worker, ending=cause, ending_reason=event.reason), AwaitExit())


def _engine_exited(worker: Worker, _event: EngineExited) -> Step:
    if worker.state is S.STOPPING:
        return worker, ()
    # No reason yet: its keeper is about to say it, and knows more than that there is no engine any more.
    stopping, commands = _stopping(replace(worker, ending=worker.ending or ExitReason.CRASHED), AwaitExit())
    return replace(stopping, message="Its engine ended; its keeper says why next, or is killed."), commands


def _exited(worker: Worker, event: Exited) -> Step:
    exit_ = final_exit(worker, event.exit)
    if worker.spec.external:
        return _external_out(worker, exit_), ()
    return _without_process(worker, exit_, event.decision)


def final_exit(worker: Worker, exit_: Exit) -> Exit:
    """*exit_* with what is known of why the worker was ended; that it crashed is a guess, which the kernel may mend."""
    is_guess = worker.ending is ExitReason.CRASHED and exit_.reason is ExitReason.OOM
    reason = exit_.reason if worker.ending is None or is_guess else worker.ending
    return replace(exit_, reason=reason, message=worker.ending_reason or exit_.message)


def _external_out(worker: Worker, exit_: Exit) -> Worker:
    if worker.state is S.DRAINING:
        return replace(worker, state=S.GONE, last_exit=exit_, message="Gone.")
    message = f"Out of routing: {exit_.sentence()} Started by hand, so it is removed when its heartbeat is overdue."
    return replace(worker, state=S.FAILED, last_exit=exit_, message=message)


def _without_process(worker: Worker, exit_: Exit, decision: RestartDecision) -> Step:
    """Its process is gone (or never was): forgotten, started again, waiting, or failed."""
    bare = replace(
        worker,
        pid=None,
        engine_pid=None,
        url="",
        ready_since=None,
        last_exit=exit_,
        ending=None,
        ending_reason="",
        again=False,
        forced=False,
    )
    if worker.forget:
        return replace(bare, state=S.GONE, message="Gone."), ()
    if worker.again:
        return _starting(bare, "Restarting as asked.")
    match decision:
        case RestartAfter(delay, reason):
            message = f"Restarting in {delay:.1f} s after {_cause(exit_)} ({reason}){_detail(exit_)}."
            return replace(bare, state=S.BACKOFF, message=message), (WaitForBackoff(delay),)
        case OpenCircuit(delay, reason):
            return replace(bare, state=S.FAILED, message=f"{exit_.sentence()} {reason}"), (WaitForBackoff(delay),)
        case GiveUp(reason):
            again = f"POST /v1/workers/{worker.spec.worker_id}/restart starts it again."
            return replace(bare, state=S.FAILED, message=f"{exit_.sentence()} {reason} {again}"), ()


_CAUSES: Final[Mapping[ExitReason, str]] = {
    ExitReason.STALE: "it went stale",
    ExitReason.UNHEALTHY: "it was found unhealthy",
    ExitReason.LOAD_TIMEOUT: "its load came to nothing",
    ExitReason.OVER_MEMORY: "it used too much memory",
}
"""What to say where a signal of ours says nothing about the cause."""


def _cause(exit_: Exit) -> str:
    if exit_.reason in _CAUSES:
        return _CAUSES[exit_.reason]
    how = exit_.how()
    if how == "unknown":
        return "an end that nobody saw"
    return how if exit_.signal_number is None else f"being {how}"


def _detail(exit_: Exit) -> str:
    return f": {exit_.message.rstrip('.')}" if exit_.message else ""


def _starting(worker: Worker, message: str) -> Step:
    fresh = replace(
        worker,
        state=S.STARTING,
        incarnation=worker.incarnation + 1,
        restart_count=worker.restart_count + 1,
        ready_since=None,
        message=message,
    )
    return fresh, (Spawn(),)


_WAYS_TO_END: Final[Mapping[type[Command], str]] = {
    Terminate: "Told to end, and killed if it does not",
    AwaitExit: "Ending by itself, and killed if it does not",
    Kill: "Killed, and gone once its processes are",
}


def _stopping(worker: Worker, command: Command) -> Step:
    message = f"{_WAYS_TO_END[type(command)]}{_why(worker)}."
    forced = worker.forced or isinstance(command, Kill)
    return replace(worker, state=S.STOPPING, message=message, forced=forced), (command,)


def _draining(worker: Worker) -> Step:
    message = f"Out of routing; its requests may end, then it is ended{_why(worker)}."
    return replace(worker, state=S.DRAINING, message=message), (WaitForDrain(),)


def _why(worker: Worker) -> str:
    if worker.ending is ExitReason.STOPPED and not worker.ending_reason:
        return " and started again, as asked" if worker.again else " as asked"
    follows = "" if worker.forget else "; its restart policy says what follows"
    return f": {worker.ending_reason.rstrip('.') or worker.ending}{follows}"


def _sweep_failed(worker: Worker, event: SweepFailed) -> Step:
    begun = "Not started yet" if worker.state is S.STARTING else "Not ended yet"
    return replace(worker, message=f"{begun}, tried again and again: {event.reason.rstrip('.')}."), ()


def _went_stale(worker: Worker, event: WentStale) -> Step:
    reason = f"no heartbeat in {event.stale_after:g} s"
    if worker.spec.external:
        return replace(worker, state=S.GONE, message=f"Removed: {reason}."), ()
    # One that was being ended already keeps its cause: that is why it leaves.
    marked = replace(worker, ending=worker.ending or ExitReason.STALE, ending_reason=worker.ending_reason or reason)
    return _stopping(marked, Kill())


def _condemned(worker: Worker, event: Condemned) -> Step:
    marked = replace(worker, ending=event.cause, ending_reason=event.reason)
    return _draining(marked) if worker.state is S.READY else _stopping(marked, Terminate())


def _end_requested(worker: Worker, event: EndRequested) -> Step:
    marked = replace(worker, ending=worker.ending or event.cause, forget=True, again=False)
    if worker.state in (S.BACKOFF, S.FAILED):
        return replace(marked, state=S.GONE, message="Gone."), ()
    if worker.spec.external:
        if worker.state is S.READY and not event.force:
            return _draining(marked)
        if worker.state is S.DRAINING and not event.force:
            return marked, ()
        return replace(marked, state=S.GONE, message="Gone."), ()
    if event.force:
        return _stopping(marked, Kill())
    if worker.state is S.READY:
        return _draining(marked)
    if worker.state in (S.DRAINING, S.STOPPING):
        return marked, ()
    return _stopping(marked, Terminate())


def _restart_requested(worker: Worker, _event: RestartRequested) -> Step:
    if worker.state in (S.BACKOFF, S.FAILED):
        return _starting(worker, "Restarting as asked.")
    if worker.forget:
        raise IllegalTransition(f"Worker '{worker.spec.worker_id}' is being ended; spawn a new one.")
    marked = replace(worker, ending=worker.ending or ExitReason.STOPPED, again=True)
    if worker.state is S.READY:
        return _draining(marked)
    if worker.state in (S.DRAINING, S.STOPPING):
        return marked, ()
    return _stopping(marked, Terminate())


def _drain_ended(worker: Worker, _event: DrainEnded) -> Step:
    if worker.spec.external:
        return replace(worker, state=S.GONE, message="Gone."), ()
    return _stopping(worker, Terminate())


def _grace_ended(worker: Worker, event: GraceEnded) -> Step:
    why = _why(worker)
    if event.kills:
        times = f"{event.kills} time{'' if event.kills == 1 else 's'}"
        who = "what is left of it" if worker.pid is None else f"process {worker.pid}"
        message = f"Killed {times}, and {who} is still there (the kernel holds it); killed again{why}."
    else:
        message = f"It did not end in its grace, so it is killed{why}."
    return replace(worker, message=message, forced=True), (Kill(),)


def _backoff_ended(worker: Worker, _event: BackoffEnded) -> Step:
    return _starting(worker, "Started again; waiting for its process to call back.")


def _restart_refused(worker: Worker, event: RestartRefused) -> Step:
    message = f"Not restarted yet, asked again in {event.delay:.0f} s: {event.reason}"
    return replace(worker, state=S.BACKOFF, message=message), (WaitForBackoff(event.delay),)


def _circuit_opened(worker: Worker, event: CircuitOpened) -> Step:
    last = f"{worker.last_exit.sentence()} " if worker.last_exit else ""
    return replace(worker, state=S.FAILED, message=f"{last}{event.reason}"), (WaitForBackoff(event.delay),)


_RULES: Final[Mapping[type[Event], Callable[[Worker, Any], Step]]] = {
    # Each rule takes the event that it stands beside; the key is what guarantees it.
    Spawned: _spawned,
    SpawnFailed: _spawn_failed,
    Adopted: _adopted,
    AnnouncedLoading: _announced_loading,
    AnnouncedReady: _announced_ready,
    AnnouncedFailed: _announced_failed,
    EngineExited: _engine_exited,
    Exited: _exited,
    SweepFailed: _sweep_failed,
    WentStale: _went_stale,
    Condemned: _condemned,
    EndRequested: _end_requested,
    RestartRequested: _restart_requested,
    DrainEnded: _drain_ended,
    GraceEnded: _grace_ended,
    BackoffEnded: _backoff_ended,
    CircuitOpened: _circuit_opened,
    RestartRefused: _restart_refused,
}
