"""What a machine has, and what of it is left. Sizes in bytes; times are seconds on the hive's monotonic clock."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """``available_bytes``: MemAvailable of the kernel. The group's: of the cgroup (our own or one above it) that leaves
    least; its left is its limit less its use without page cache. None where no group limits us."""

    total_bytes: int
    available_bytes: int
    group_limit_bytes: int | None = None
    group_left_bytes: int | None = None

    @property
    def free_bytes(self) -> int:
        """What programs can still get here."""
        return (
            self.available_bytes
            if self.group_left_bytes is None
            else max(0, min(self.available_bytes, self.group_left_bytes))
        )


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """One accelerator; ``index`` counts from 0 within its backend (cuda, rocm, vulkan, metal).

    ``held``: bytes by pid of the processes that use it, None where that cannot be seen. ``is_live``: ``free_bytes``
    is of now; else of when the engine's build was asked, before any worker of ours took some.
    """

    backend: str
    index: int
    name: str
    total_bytes: int
    free_bytes: int
    uuid: str = ""
    held: Mapping[int, int] | None = None
    is_live: bool = True


@dataclass(frozen=True, slots=True)
class DiskReading:
    """The file system that holds ``path``. ``free_bytes``: what a user without privileges may still write."""

    path: str
    total_bytes: int
    free_bytes: int


STATE_RESERVE_BYTES: Final = 64 * 2**20
"""What has to stay free beside the hive's state, for its database, exit files and the logs of those that run."""

SMALL_DISK_SHARE: Final = 8
"""On a disk that is small itself: one part in so many."""


def state_reserve(disk: DiskReading) -> int:
    """Bytes that are to stay free on the disk of the hive's state."""
    return min(STATE_RESERVE_BYTES, disk.total_bytes // SMALL_DISK_SHARE)


@dataclass(frozen=True, slots=True)
class MachineReading:
    """One look at all of it. ``devices``: those that a driver reports, whatever engine could use them.

    ``failing``: backends whose driver is here and does not work, or has lost a device. What an engine's build
    remembers of their devices is no longer true.
    """

    at: float
    memory: MemoryReading
    models_disk: DiskReading
    state_disk: DiskReading
    devices: tuple[DeviceReading, ...] = ()
    failing: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class EngineBuild:
    """What an engine's own build can use beside the CPU. ``problem``: why it could not be asked, empty where it was."""

    devices: tuple[DeviceReading, ...] = ()
    problem: str = ""

    @property
    def backends(self) -> frozenset[str]:
        return frozenset(device.backend for device in self.devices)
