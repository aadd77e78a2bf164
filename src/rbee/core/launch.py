"""What a node needs to start one incarnation of one worker, and what a worker tells of itself with each beat."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from rbee.core.claims import Claim, Placement
from rbee.core.engine_args import COMMAND, LLAMA_CPP
from rbee.core.exits import Exit
from rbee.core.worker import WorkerSpec


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """``[engine.NAME]`` of the settings. ``command``: template with {port} {model} {names}; ``python``: interpreter."""

    command: tuple[str, ...] = ()
    health_path: str = ""
    python: str = ""


def kind_of(engine: str, options: EngineOptions) -> str:
    """What an engine of the settings is: a command, or llama.cpp under another name with a Python of its own."""
    if options.command:
        return COMMAND
    return LLAMA_CPP if options.python else engine


def names_of(spec: WorkerSpec) -> tuple[str, ...]:
    """What clients may call a worker's model, the alias first: an engine that can is told all of them."""
    return tuple(dict.fromkeys(name for name in (spec.alias, spec.model_ref, spec.worker_id) if name))


def served_names(spec: WorkerSpec, options: EngineOptions, model_path: str) -> tuple[str, ...]:
    """The names that the engine takes as ``model``; empty where nobody can say, or any will do.

    A command knows what its template passes: ``{names}``, or else its model's path alone. *model_path* is empty where
    it is not known.
    """
    if not options.command or any("{names}" in argument for argument in options.command):
        return names_of(spec)
    if model_path and any("{model}" in argument for argument in options.command):
        return (model_path,)
    return ()


@dataclass(frozen=True, slots=True)
class Launch:
    """One incarnation to start. ``model_path`` is empty for the synthetic engine. Times in seconds, sizes in bytes.

    ``drain_timeout``: the most that requests in flight get once the keeper is told to end. ``end_timeout``: from then
    until it is killed; it divides that time itself. ``device_uuids``: of the placement's devices, where they have any.
    ``memory_limit_bytes``: a hard limit for its cgroup, None for none. ``added_engine_args``: what the engine is told
    beside what was asked for.
    """

    spec: WorkerSpec
    incarnation: int
    port: int
    port_last: int
    model_path: str
    token: str = field(repr=False)
    host: str = "127.0.0.1"
    callback_url: str = ""
    heartbeat_interval: float = 30.0
    orphan_timeout: float = 300.0
    drain_timeout: float = 5.0
    end_timeout: float = 10.0
    prompt_cache_bytes: int = 512 * 2**20
    engine: EngineOptions = EngineOptions()
    placement: Placement = field(default_factory=Placement)
    device_uuids: tuple[str, ...] = ()
    memory_limit_bytes: int | None = None
    added_engine_args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What one beat may carry; None: the worker could not tell."""

    rss_bytes: int | None = None
    vram_bytes: int | None = None
    slots_total: int | None = None
    slots_busy: int | None = None
    requests_total: int | None = None
    prompt_tokens_total: int | None = None
    generated_tokens_total: int | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process for longer than its pid: two processes are the same only when all three agree.

    ``start_time``: field 22 of /proc/pid/stat, clock ticks since boot. ``boot_id``: of this boot of the kernel.
    """

    pid: int
    start_time: int
    boot_id: str


class Ending(StrEnum):
    """What somebody wants of a worker's end: that it is forgotten, started again, or judged by its restart policy."""

    FORGET = "forget"
    AGAIN = "again"
    CONDEMNED = "condemned"


@dataclass(frozen=True, slots=True)
class StoredWorker:
    """A worker as it survives the hive: its row is written before its process is forked, the identity after.

    ``url`` is empty until it has been ready. ``started_at``: RFC 3339, for people. ``ending``: None where nobody asked
    it to end. ``last_exit``: of the incarnation before.
    """

    spec: WorkerSpec
    incarnation: int
    identity: ProcessIdentity | None = None
    url: str = ""
    engine_pid: int | None = None
    slots: int = 0
    restart_count: int = 0
    started_at: str = ""
    ending: Ending | None = None
    last_exit: Exit | None = None
    claim: Claim | None = None


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one process and all below it use. ``private_bytes``: RssAnon + RssShmem, what nobody else could use.

    ``locked_bytes``: pages of files that are locked in memory. ``peak_rss_bytes``: the most that was ever resident,
    the sum of the processes that live. ``cpu_seconds`` and ``read_bytes`` only grow while the same processes live.
    ``pids``: of all that was counted.
    """

    rss_bytes: int = 0
    private_bytes: int = 0
    cpu_seconds: float = 0.0
    read_bytes: int = 0
    locked_bytes: int = 0
    peak_rss_bytes: int = 0
    pids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """What a worker's own server answered to a question of the hive."""

    status: int
    body: bytes


def first_free(ports: Sequence[int], taken: set[int]) -> int | None:
    """The first of *ports* that nobody holds, or None."""
    return next((port for port in ports if port not in taken), None)
