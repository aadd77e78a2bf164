"""The fakes that we ship: a node, its processes, a store and a library that need no machine. Imported by tests only."""

import errno
import os
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import anyio

from rbee.core import auth
from rbee.core.admission import Limits
from rbee.core.claims import Peak
from rbee.core.errors import ModelNotFound
from rbee.core.exits import Exit, ExitReason
from rbee.core.launch import Footprint, Launch, ProcessIdentity, Reply, StoredWorker
from rbee.core.model_header import ModelFacts
from rbee.core.model_ref import ModelRef
from rbee.core.resources import DeviceReading, DiskReading, EngineBuild, MachineReading, MemoryReading
from rbee.core.restart import RestartRules
from rbee.core.routing import RouteTable
from rbee.hive.options import Adapters, PoolOptions
from rbee.hive.pool import Pool
from rbee.hive.reception import Reception, ReceptionOptions
from rbee.hive.registry import Registry

SECRET = b"s" * 32


@dataclass(eq=False)
class FakeProcess:
    """Ends when it is told to: ``end`` from a test, or a signal. ``deaf`` to SIGTERM, as a hung one is."""

    identity: ProcessIdentity
    deaf: bool = False
    signals: list[str] = field(default_factory=list)
    closed: bool = False
    _exit: Exit | None = None
    _ended: anyio.Event = field(default_factory=anyio.Event)

    async def wait(self) -> Exit:
        await self._ended.wait()
        assert self._exit is not None
        return self._exit

    def close(self) -> None:
        self.closed = True

    def terminate(self) -> None:
        self.signals.append("TERM")
        if not self.deaf:
            self.end(Exit(ExitReason.STOPPED, code=0))

    def kill(self) -> None:
        self.signals.append("KILL")
        self.end(Exit(ExitReason.CRASHED, signal_number=9))

    def end(self, exit_: Exit) -> None:
        if self._exit is None:
            self._exit = exit_
            self._ended.set()

    @property
    def alive(self) -> bool:
        return self._exit is None


class FakeNode:
    """Records what was launched.

    ``deaf``: new processes ignore SIGTERM. ``blind``, ``sweep_failures``: so many of the next looks at a process, or
    sweeps, fail. ``strangers``: workers of which something is kept, whoever knows them.
    """

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.processes: list[FakeProcess] = []
        self.others: dict[int, FakeProcess] = {}
        self.swept: list[tuple[str, int]] = []
        self.forgotten: list[str] = []
        self.strangers: set[str] = set()
        self.living: dict[ProcessIdentity, FakeProcess] = {}
        self.marked: dict[tuple[str, int], FakeProcess] = {}
        self.last_words: dict[tuple[str, int], Exit] = {}
        self.orphans = 0
        self.footprints: dict[int, Footprint] = {}
        self.exact_footprints: dict[int, Footprint] = {}
        self.taken_ports: set[int] = set()
        self.fail_next: OSError | None = None
        self.deaf = False
        self.blind = 0
        self.sweep_failures = 0
        self.log_failure: OSError | None = None
        self.fork_delay = 0.0
        self.forget_delay = 0.0
        self.sweep_delay = 0.0

    async def spawn(self, launch: Launch) -> FakeProcess:
        await anyio.sleep(self.fork_delay)
        if self.fail_next is not None:
            failure, self.fail_next = self.fail_next, None
            raise failure
        process = FakeProcess(ProcessIdentity(1000 + len(self.processes), 1, "boot"), deaf=self.deaf)
        self.launches.append(launch)
        self.processes.append(process)
        return process

    def _look(self) -> None:
        if self.blind > 0:
            self.blind -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def watch(self, pid: int) -> FakeProcess | None:
        self._look()
        return self.others.get(pid)

    def add_other(self, pid: int) -> FakeProcess:
        """A process that is not the hive's child: an engine, or a worker started by hand."""
        self.others[pid] = FakeProcess(ProcessIdentity(pid, 1, "boot"))
        return self.others[pid]

    def add_living(self, identity: ProcessIdentity) -> FakeProcess:
        """A process that an earlier hive started, and that still runs."""
        self.living[identity] = FakeProcess(identity, deaf=self.deaf)
        return self.living[identity]

    async def adopt(self, row: StoredWorker) -> FakeProcess | None:
        await anyio.lowlevel.checkpoint()
        self._look()
        if row.identity is None:
            return self.marked.get((row.spec.worker_id, row.incarnation))
        return self.living.get(row.identity)

    async def find_keeper(self, worker_id: str, incarnation: int) -> ProcessIdentity | None:
        await anyio.lowlevel.checkpoint()
        self._look()
        process = self.marked.get((worker_id, incarnation))
        return None if process is None else process.identity

    async def last_word(self, worker_id: str, incarnation: int) -> Exit:
        await anyio.lowlevel.checkpoint()
        return self.last_words.get((worker_id, incarnation), Exit(ExitReason.CRASHED))

    async def sweep_orphans(self) -> int:
        await anyio.lowlevel.checkpoint()
        return self.orphans

    async def measure(self, pids: Sequence[int]) -> Mapping[int, Footprint]:
        await anyio.lowlevel.checkpoint()
        return {pid: self.footprints[pid] for pid in pids if pid in self.footprints}

    async def measure_exactly(self, pid: int) -> Footprint | None:
        await anyio.lowlevel.checkpoint()
        return self.exact_footprints.get(pid, self.footprints.get(pid))

    async def sweep(self, worker_id: str, incarnation: int) -> int:
        await anyio.sleep(self.sweep_delay)
        if self.sweep_failures > 0:
            self.sweep_failures -= 1
            raise OSError("too many open files")
        self.swept.append((worker_id, incarnation))
        return 0

    def port_is_free(self, host: str, port: int) -> bool:
        return port not in self.taken_ports

    async def tail(self, worker_id: str, lines: int) -> Sequence[str]:
        if self.log_failure is not None:
            raise self.log_failure
        return [f"line {number}" for number in range(1, lines + 1)][-lines:]

    async def follow(self, worker_id: str, lines: int) -> AsyncIterator[str]:
        yield "first"

    async def forget(self, worker_id: str) -> None:
        await anyio.sleep(self.forget_delay)
        self.forgotten.append(worker_id)

    async def forget_strangers(self, known: Collection[str]) -> int:
        await anyio.lowlevel.checkpoint()
        self._look()
        removed = sorted(self.strangers.difference(known))
        self.strangers.difference_update(removed)
        self.forgotten += removed
        return len(removed)


class FakeProbe:
    """Answers at every url of ``answering``, at once; never at those of ``silent``; elsewhere nobody listens."""

    def __init__(self) -> None:
        self.answering: dict[str, Reply] = {}
        self.silent: set[str] = set()
        self.asked: list[tuple[str, str, str]] = []

    async def get(self, url: str, path: str, key: str) -> Reply:
        self.asked.append((url, path, key))
        await anyio.lowlevel.checkpoint()
        if url in self.silent:
            await anyio.sleep_forever()
        if url not in self.answering:
            raise ConnectionRefusedError("nobody listens there")
        return self.answering[url]


class FakeStore:
    """Rows in a dictionary, and ``history``: every row that was ever saved, in order."""

    def __init__(self, rows: Sequence[StoredWorker] = ()) -> None:
        self.rows = {row.spec.worker_id: row for row in rows}
        self.history: list[StoredWorker] = []
        self.fail: OSError | None = None

    async def save(self, row: StoredWorker) -> None:
        await anyio.lowlevel.checkpoint()
        if self.fail is not None:
            raise self.fail
        self.rows[row.spec.worker_id] = row
        self.history.append(row)

    async def forget(self, worker_id: str) -> None:
        await anyio.lowlevel.checkpoint()
        if self.fail is not None:
            raise self.fail
        self.rows.pop(worker_id, None)

    async def load(self) -> Sequence[StoredWorker]:
        return list(self.rows.values())


class FakeLibrary:
    """Has every model but those in ``missing``."""

    def __init__(self) -> None:
        self.missing: set[str] = set()

    async def locate(self, ref: ModelRef) -> str:
        if str(ref) in self.missing:
            raise ModelNotFound(f"There is no {ref}.")
        return f"/models/{ref.name}.gguf"


GIB = 2**30


@dataclass(eq=False)
class FakeMachine:
    """Has as much as a test says. ``looks``: how often it was looked at; ``fail``: the next looks raise it;
    ``asked``: the interpreters whose engine was asked for."""

    memory: MemoryReading = field(default_factory=lambda: MemoryReading(64 * GIB, 60 * GIB))
    disk: DiskReading = field(default_factory=lambda: DiskReading("/models", 1000 * GIB, 500 * GIB))
    devices: tuple[DeviceReading, ...] = ()
    builds: dict[str, EngineBuild] = field(default_factory=dict)
    looks: int = 0
    fail: OSError | None = None
    asked: list[str] = field(default_factory=list)

    async def look(self, max_age: float = 2.0) -> MachineReading:
        await anyio.lowlevel.checkpoint()
        self.looks += 1
        if self.fail is not None:
            raise self.fail
        return MachineReading(anyio.current_time(), self.memory, self.disk, self.disk, self.devices)

    async def build_of(self, python: str) -> EngineBuild:
        await anyio.lowlevel.checkpoint()
        self.asked.append(python)
        return self.builds.get(python, EngineBuild())


class FakeSizer:
    """Every model's file has ``size_bytes`` and no header, unless ``known`` says more of its path."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self.known: dict[str, ModelFacts] = {}

    async def facts(self, path: str) -> ModelFacts:
        await anyio.lowlevel.checkpoint()
        return self.known.get(path, ModelFacts(self.size_bytes))


class FakePeaks:
    def __init__(self) -> None:
        self.saved: dict[str, Peak] = {}

    async def load(self) -> Mapping[str, Peak]:
        await anyio.lowlevel.checkpoint()
        return dict(self.saved)

    async def save(self, key: str, peak: Peak) -> None:
        await anyio.lowlevel.checkpoint()
        self.saved[key] = peak

    async def forget(self, key: str) -> None:
        await anyio.lowlevel.checkpoint()
        self.saved.pop(key, None)


@dataclass(eq=False)
class FakeHive:
    """A pool with all that is round it; ``options`` are short where a test would have to wait."""

    options: PoolOptions = field(
        default_factory=lambda: PoolOptions(
            callback_url="unix:/run/control.sock",
            ports=range(8081, 8090),
            worker_host="127.0.0.1",
            heartbeat_interval=30.0,
            stale_after=60.0,
            drain_timeout=30.0,
            term_grace=10.0,
            orphan_timeout=300.0,
            prompt_cache_bytes=0,
            engines={},
            limits=Limits(8 * GIB, 2 * GIB, 1 * GIB, 10 * GIB),
            processor="x86_64",
            restart=RestartRules(jitter=0.0),
        )
    )
    reception_options: ReceptionOptions = field(default_factory=lambda: ReceptionOptions(True, (), 9200))
    node: FakeNode = field(default_factory=FakeNode)
    store: FakeStore = field(default_factory=FakeStore)
    library: FakeLibrary = field(default_factory=FakeLibrary)
    probe: FakeProbe = field(default_factory=FakeProbe)
    machine: FakeMachine = field(default_factory=FakeMachine)
    sizer: FakeSizer = field(default_factory=FakeSizer)
    peaks: FakePeaks = field(default_factory=FakePeaks)
    registry: Registry = field(default_factory=Registry)
    routes: RouteTable = field(default_factory=RouteTable)
    policy: auth.AuthPolicy = field(default_factory=lambda: auth.AuthPolicy(digests={}, worker_secret=SECRET))

    def __post_init__(self) -> None:
        adapters = Adapters(self.node, self.store, self.library, self.probe, self.machine, self.sizer, self.peaks)
        self.pool = Pool(self.options, adapters, self.registry, self.routes, self.policy)
        self.reception = Reception(self.reception_options, self.pool, self.registry, self.node)

    def speaker(self, worker_id: str, incarnation: int = 1) -> auth.Principal:
        """The worker itself, by its own token."""
        return auth.resolve(self.policy, auth.worker_token(SECRET, worker_id, incarnation))
