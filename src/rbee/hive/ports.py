"""What the hive needs of the world. Adapters live in nodes/, storage/ and models/; daemon.py hands them in."""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from rbee.core.exits import Exit
from rbee.core.launch import Launch, ProcessIdentity, StoredWorker
from rbee.core.model_ref import ModelRef


class Process(Protocol):
    """A process that can be watched, and ended if it is ours."""

    @property
    def identity(self) -> ProcessIdentity: ...

    async def wait(self) -> Exit:
        """Return once it has ended. To be awaited once: it lets go of the process."""
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
        """A process of the same user that is not our child; None when there is none."""
        ...

    async def end_leftover(self, identity: ProcessIdentity, grace: float) -> bool:
        """End a process of an earlier hive, group and all; False when it was gone already."""
        ...

    async def sweep(self, worker_id: str, incarnation: int) -> int:
        """SIGKILL whatever still carries this incarnation in its environment; returns how many there were."""
        ...

    def port_is_free(self, host: str, port: int) -> bool: ...

    async def tail(self, worker_id: str, lines: int) -> Sequence[str]:
        """The last lines of the newest log of a worker."""
        ...

    def follow(self, worker_id: str, lines: int) -> AsyncIterator[str]:
        """The last lines, then each new one as it is written, until the worker is forgotten or the consumer leaves."""
        ...

    async def forget(self, worker_id: str) -> None:
        """Remove what is kept of a worker (its logs)."""
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
