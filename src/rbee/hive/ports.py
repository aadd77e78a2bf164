"""What the hive needs of the world. Adapters live in nodes/, storage/ and models/; daemon.py hands them in."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Protocol

from rbee.core.claims import Peak
from rbee.core.exits import Exit
from rbee.core.launch import Footprint, Launch, ProcessIdentity, Reply, StoredWorker
from rbee.core.model_header import ModelFacts
from rbee.core.model_ref import ModelRef
from rbee.core.resources import EngineBuild, MachineReading


class Process(Protocol):
    """A process that can be watched, and ended if it is ours."""

    @property
    def identity(self) -> ProcessIdentity: ...

    async def wait(self) -> Exit:
        """Return once it has ended. To be awaited once: it lets go of the process."""
        ...

    def close(self) -> None:
        """Let go of a process that nobody waits for, as it is; its signals go nowhere from then on.

        Where somebody waits, nothing happens: the wait lets go of it, also when it is cancelled.
        """
        ...

    def terminate(self) -> None:
        """SIGTERM to it alone; nothing happens when it is gone or the pid is another's by now."""
        ...

    def kill(self) -> None:
        """SIGKILL to its whole group, with the same guard."""
        ...


class Node(Protocol):
    """Where workers run."""

    async def spawn(self, launch: Launch) -> Process:
        """Start it. Raises OSError when the system cannot."""
        ...

    def watch(self, pid: int) -> Process | None:
        """A process of the same user that is not our child; None when there is none.

        Raises OSError where it cannot be looked at just now (no descriptor is left, say): that says nothing of it.
        """
        ...

    async def adopt(self, row: StoredWorker) -> Process | None:
        """The living process of a worker that an earlier hive started; None when it is gone, or another user's.

        Raises OSError as ``watch`` does.

        A row without an identity (its hive was killed between fork and pid) finds its keeper by the mark in its
        environment. How the process ends is then known from what the keeper leaves, not from an exit status.
        """
        ...

    async def find_keeper(self, worker_id: str, incarnation: int) -> ProcessIdentity | None:
        """The living keeper that carries this incarnation's mark, whoever started it; None when there is none.

        Raises OSError as ``watch`` does.
        """
        ...

    async def last_word(self, worker_id: str, incarnation: int) -> Exit:
        """How an incarnation ended that nobody waited for; unknown where its keeper could not leave word."""
        ...

    async def sweep_orphans(self) -> int:
        """SIGKILL what is left of keepers that are gone, whoever started them; returns how many there were.

        What does not end is logged and left.
        """
        ...

    async def measure(self, pids: Sequence[int]) -> Mapping[int, Footprint]:
        """What each of these processes uses, those below it included; one that is gone is left out."""
        ...

    async def measure_exactly(self, pid: int) -> Footprint | None:
        """As ``measure``, with pages that its processes share counted once; slow (44-83 ms for 5 GiB). None if gone."""
        ...

    async def sweep(self, worker_id: str, incarnation: int) -> int:
        """SIGKILL whatever is left of this incarnation, wherever it hides; returns how many there were, once gone.

        Raises OSError, after some seconds of trying, where any of them does not end or cannot be looked for; its
        words name the pids. Nothing is given up then: it can be called again.
        """
        ...

    def port_is_free(self, host: str, port: int) -> bool: ...

    async def tail(self, worker_id: str, lines: int) -> Sequence[str]:
        """The last lines of the newest log of a worker, or as many as can be read.

        Empty where there is no log. Raises OSError where nothing of it can be read.
        """
        ...

    def follow(self, worker_id: str, lines: int) -> AsyncIterator[str]:
        """The last lines, then each new one as it is written, until the worker is forgotten or the consumer leaves."""
        ...

    async def forget(self, worker_id: str) -> None:
        """Remove what is kept of a worker (its logs)."""
        ...

    async def forget_strangers(self, known: Collection[str]) -> int:
        """Remove what is kept of workers that nobody knows any more; returns how many there were.

        Those are the workers that are not *known*, that no living process belongs to, and that were neither spawned
        nor adopted here. Raises OSError where that cannot be found out; nothing is removed then.
        """
        ...


class Probe(Protocol):
    """Asks a worker's own server."""

    async def get(self, url: str, path: str, key: str) -> Reply:
        """GET *path* of the server at *url* with its key; the caller bounds the time.

        Raises OSError where there is no server, or what answers is not HTTP.
        """
        ...


class Store(Protocol):
    """What survives a restart of the hive. Each call raises OSError where the disk or the database fails."""

    async def save(self, row: StoredWorker) -> None: ...

    async def forget(self, worker_id: str) -> None: ...

    async def load(self) -> Sequence[StoredWorker]: ...


class Library(Protocol):
    """The models that can be run."""

    async def locate(self, ref: ModelRef) -> str:
        """The file's path, empty for the synthetic engine. Raises ModelNotFound or NotAModelFile."""
        ...


class Sizer(Protocol):
    """What is known of a model's file."""

    async def facts(self, path: str) -> ModelFacts:
        """Of the file at *path* and, where it is split, of its other parts. Raises NotAModelFile or ModelNotFound."""
        ...


class Peaks(Protocol):
    """The most that models were seen to take. Losing one costs an estimate, so a store that fails is no error."""

    async def load(self) -> Mapping[str, Peak]: ...

    async def save(self, key: str, peak: Peak) -> None: ...

    async def forget(self, key: str) -> None: ...


class Machine(Protocol):
    """What this machine has. A driver that is missing or fails is a machine without its devices."""

    async def look(self, max_age: float = 2.0) -> MachineReading:
        """Memory and disks as of now, devices as of at most *max_age* seconds ago.

        Raises OSError where memory cannot be read.
        """
        ...

    async def build_of(self, python: str) -> EngineBuild:
        """What the xllamacpp of this interpreter (empty: ours) was built for. Asked once, in a short-lived child."""
        ...
