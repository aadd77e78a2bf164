"""What can happen to a worker (events), and what is to be done about it (commands): values; worker.py has the rules."""

from dataclasses import dataclass

from rbee.core.exits import Exit, ExitReason


@dataclass(frozen=True, slots=True)
class RestartAfter:
    """Start it again after *delay* seconds; ``reason`` is a clause such as 'attempt 3 of 5 in 300 s'."""

    delay: float
    reason: str


@dataclass(frozen=True, slots=True)
class OpenCircuit:
    """Leave it failed and try once after *delay* seconds; ``reason`` is one sentence that says why, and when."""

    delay: float
    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Leave it failed; ``reason`` is one sentence that says why, and what to do."""

    reason: str


RestartDecision = RestartAfter | OpenCircuit | GiveUp


# Events: what happened.


@dataclass(frozen=True, slots=True)
class Spawned:
    pid: int


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    reason: str
    decision: RestartDecision


@dataclass(frozen=True, slots=True)
class Adopted:
    """A worker of an earlier hive was found alive; ``serving``: its server has answered to its own key."""

    url: str
    engine_pid: int | None
    slots: int
    serving: bool


@dataclass(frozen=True, slots=True)
class AnnouncedLoading:
    url: str
    pid: int
    engine_pid: int | None
    slots: int


@dataclass(frozen=True, slots=True)
class AnnouncedReady:
    url: str
    pid: int
    engine_pid: int | None
    slots: int


@dataclass(frozen=True, slots=True)
class AnnouncedFailed:
    reason: str


@dataclass(frozen=True, slots=True)
class EngineExited:
    """The engine's process ended while its keeper still lives."""


@dataclass(frozen=True, slots=True)
class Exited:
    """The worker's process ended. ``decision`` is what restart policy and circuit say should it be unexpected."""

    exit: Exit
    decision: RestartDecision


@dataclass(frozen=True, slots=True)
class SweepFailed:
    """What is left of a life of it would not end, or could not be looked for; that is tried again and again."""

    reason: str


@dataclass(frozen=True, slots=True)
class WentStale:
    stale_after: float


@dataclass(frozen=True, slots=True)
class Condemned:
    """It must be ended although nobody asked for it: unhealthy, hung, over its memory, too long loading."""

    cause: ExitReason
    reason: str


@dataclass(frozen=True, slots=True)
class EndRequested:
    """End it for good. ``force``: without waiting for its requests or for its own shutdown."""

    cause: ExitReason = ExitReason.STOPPED
    force: bool = False


@dataclass(frozen=True, slots=True)
class RestartRequested:
    """End it if it runs, then start it again."""


@dataclass(frozen=True, slots=True)
class DrainEnded:
    """Its requests ended, or the time for them did."""


@dataclass(frozen=True, slots=True)
class GraceEnded:
    """It was told to end, or killed *kills* times, and is still there after its grace."""

    kills: int = 0


@dataclass(frozen=True, slots=True)
class BackoffEnded:
    """The delay is over, and it may start."""


@dataclass(frozen=True, slots=True)
class CircuitOpened:
    """It may not start yet, since its kind has failed too often; asked again after *delay* seconds."""

    reason: str
    delay: float


@dataclass(frozen=True, slots=True)
class RestartRefused:
    """Admission was refused; asked again after *delay* seconds."""

    reason: str
    delay: float


Event = (
    Spawned
    | SpawnFailed
    | Adopted
    | AnnouncedLoading
    | AnnouncedReady
    | AnnouncedFailed
    | EngineExited
    | Exited
    | SweepFailed
    | WentStale
    | Condemned
    | EndRequested
    | RestartRequested
    | DrainEnded
    | GraceEnded
    | BackoffEnded
    | CircuitOpened
    | RestartRefused
)


# Commands: what the shell must do.


@dataclass(frozen=True, slots=True)
class Spawn: ...


@dataclass(frozen=True, slots=True)
class WaitForDrain:
    """Answer with DrainEnded once no request is in flight, or the drain timeout has passed."""


@dataclass(frozen=True, slots=True)
class Terminate:
    """SIGTERM to the keeper alone; answer with GraceEnded when it is still there after its grace."""


@dataclass(frozen=True, slots=True)
class AwaitExit:
    """It ends by itself; answer with GraceEnded when it is still there after its grace."""


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL to the whole group."""


@dataclass(frozen=True, slots=True)
class WaitForBackoff:
    """Ask after *delay* seconds whether it may start; answer with BackoffEnded, CircuitOpened or RestartRefused."""

    delay: float


Command = Spawn | WaitForDrain | Terminate | AwaitExit | Kill | WaitForBackoff
