"""This machine: its memory and disks as of now, and the accelerators that somebody else reads."""

import math
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, Protocol

import anyio

from rbee.core.resources import DeviceReading, DiskReading, EngineBuild, MachineReading, MemoryReading
from rbee.nodes import memory
from rbee.nodes.disk import PATIENCE, Disk
from rbee.nodes.lanes import LOOKS

NVIDIA: Final = frozenset({"cuda"})
"""The backends of the only driver that is read: what others have is known from an engine's build."""


class Gpus(Protocol):
    @property
    def is_failing(self) -> bool:
        """Whether, at the last reading, a driver that is here did not work, or had lost a device."""
        ...

    async def read(self, max_age: float = 2.0) -> tuple[DeviceReading, ...]:
        """The devices that drivers report, at most *max_age* seconds old; a driver that fails has none."""
        ...


class NoGpus:
    """A machine without accelerators."""

    is_failing = False

    async def read(self, max_age: float = 2.0) -> tuple[DeviceReading, ...]:
        return ()


class _Seen(NamedTuple):
    memory: MemoryReading
    models_disk: DiskReading
    state_disk: DiskReading


class LocalMachine:
    """*build_of* asks an interpreter's engine what it was built for. Disks: of the models, and of the hive's state."""

    def __init__(
        self,
        models_disk: Disk,
        state_disk: Disk,
        build_of: Callable[[str], Awaitable[EngineBuild]],
        gpus: Gpus | None = None,
        read_memory: Callable[[], MemoryReading] = memory.read,
    ) -> None:
        self._models_disk = models_disk
        self._state_disk = state_disk
        self._build_of = build_of
        self._gpus = gpus or NoGpus()
        self._read_memory = read_memory

    async def look(self, max_age: float = 2.0, device_patience: float = math.inf) -> MachineReading:
        """A reading of now. Devices whose driver takes longer than *device_patience* seconds are not in it."""
        # Before the first of them is read: whatever was settled by then is in all of them.
        at = anyio.current_time()
        seen: _Seen | None = None
        with anyio.move_on_after(PATIENCE):
            seen = await LOOKS.run(self._read, abandon_on_cancel=True)
        if seen is None:
            self._models_disk.give_up()
            self._state_disk.give_up()
            seen = _Seen(await LOOKS.run(self._read_memory), self._models_disk.last, self._state_disk.last)
        devices: tuple[DeviceReading, ...] = ()
        with anyio.move_on_after(device_patience):
            devices = await self._gpus.read(max_age)
        return MachineReading(at, *seen, devices=devices, failing=NVIDIA if self._gpus.is_failing else frozenset())

    def _read(self) -> _Seen:
        # In one thread: each change of threads may cost milliseconds on a busy machine.
        return _Seen(self._read_memory(), self._models_disk.read(), self._state_disk.read())

    async def build_of(self, python: str) -> EngineBuild:
        return await self._build_of(python)
