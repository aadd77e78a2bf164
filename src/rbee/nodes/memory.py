"""How much memory programs can still get here: of the machine, and of the cgroups that limit this process."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from rbee.core.resources import MemoryReading
from rbee.nodes import cgroups
from rbee.nodes.processes import LINUX, fields_of, read_file

_MEMINFO: Final = Path("/proc/meminfo")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_KIB: Final = 1024


class Controller(NamedTuple):
    """The files of one version of the memory controller, and the lines of memory.stat that are page cache."""

    limit: str
    use: str
    cache: tuple[bytes, bytes]
    inherited_limit: bytes = b""


# Not ``file - shmem``: locked pages are no cache, and nobody gets them (docs/decisions/machine-memory.md).
UNIFIED: Final = Controller("memory.max", "memory.current", (b"active_file", b"inactive_file"))
# The kernel sums up v1 limits from the very top, so those of groups above our mount are known, too.
V1: Final = Controller(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    (b"total_active_file", b"total_inactive_file"),
    b"hierarchical_memory_limit",
)


class GroupReading(NamedTuple):
    limit_bytes: int
    left_bytes: int


@dataclass(frozen=True, slots=True)
class Group:
    """Where a process is in one hierarchy."""

    directory: Path
    controller: Controller

    def tightest(self, total_bytes: int) -> GroupReading | None:
        """The group, this one or one above it as far as they can be seen, that leaves least; None without a limit.

        A limit that the machine itself does not reach, *total_bytes*, is none. The use of a group contains that of
        the groups below it, those of our workers too; swap counts for nothing. Raises OSError.
        """
        readings = [found for group in _upwards(self.directory) if (found := self._read(group, total_bytes))]
        return min(readings, key=lambda reading: reading.left_bytes, default=None)

    def _read(self, directory: Path, total_bytes: int) -> GroupReading | None:
        files = self.controller
        try:
            text = read_file(str(directory / files.limit)).strip()
            limit = total_bytes if text == b"max" else int(text)
            if limit >= total_bytes and not files.inherited_limit:
                return None
            stat = read_file(str(directory / "memory.stat"))
            if files.inherited_limit:
                limit = min(limit, *(fields_of(stat, files.inherited_limit, separator=b" ") or [limit]))
            if limit >= total_bytes:
                return None
            use = int(read_file(str(directory / files.use)))
        except OSError as error:
            # The controller is not there (the root group has no limit), or the group is going.
            cgroups.unless_gone(error)
            return None
        cache = sum(fields_of(stat, *files.cache, separator=b" ") or [0])
        return GroupReading(limit, max(0, limit - max(0, use - cache)))


def _upwards(directory: Path) -> Iterator[Path]:
    yield directory
    for above in directory.parents:
        if not (above / "cgroup.procs").exists():
            return
        yield above


def own_groups() -> list[Group]:
    """Where this process is, in each hierarchy that may limit its memory. Raises OSError."""
    found = ((cgroups.directory_of("self"), UNIFIED), (cgroups.directory_of("self", "memory"), V1))
    return [Group(directory, controller) for directory, controller in found if directory is not None]


def on_processor_lists(zoneinfo: Path) -> int:
    """Bytes that are free, and that MemAvailable lacks: each processor keeps lists of pages that were freed on it.

    Since Linux 6.7 these may grow to an eighth of the memory: 1.4 GiB of 24 were seen there after a worker had ended,
    for minutes. Whoever needs memory gets them. 0 where that cannot be read.
    """
    try:
        fields = read_file(str(zoneinfo)).split()
    except OSError:
        return 0
    pages = sum(int(fields[at + 1]) for at, word in enumerate(fields) if word == b"count:")
    return pages * _PAGE


def read(meminfo: Path = _MEMINFO, groups: list[Group] | None = None) -> MemoryReading:
    """A reading of now; *groups* are our own unless given. Blocking. Raises OSError where there is none to be had."""
    if not LINUX:
        memory = psutil.virtual_memory()
        return MemoryReading(memory.total, memory.available)
    found = fields_of(read_file(str(meminfo)), b"MemTotal", b"MemAvailable")
    if found is None:
        raise OSError(f"{meminfo} does not say MemTotal and MemAvailable")
    total, available = (kib * _KIB for kib in found)
    available = min(total, available + on_processor_lists(meminfo.with_name("zoneinfo")))
    readings = [
        tightest for group in (own_groups() if groups is None else groups) if (tightest := group.tightest(total))
    ]
    if not readings:
        return MemoryReading(total, available)
    least = min(readings, key=lambda reading: reading.left_bytes)
    return MemoryReading(total, available, least.limit_bytes, least.left_bytes)
