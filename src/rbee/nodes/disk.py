"""How much room there is on the file system of a directory, also while that does not answer."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import anyio
import structlog

from rbee.core.resources import DiskReading
from rbee.nodes.lanes import DISKS

log = structlog.get_logger(__name__)

PATIENCE: Final = 0.5
"""Seconds that a look waits for a disk; one that takes longer (a server that is away) is not waited for again until
it has answered."""


def read(directory: Path) -> DiskReading:
    """The file system of *directory* or, while that is not there, of the nearest one above it that is.

    Blocking, on a network for as long as its server is away. Raises OSError where it cannot be read.
    """
    for existing in (directory, *directory.parents):
        try:
            found = os.statvfs(existing)
        except (FileNotFoundError, NotADirectoryError):
            continue
        return DiskReading(str(directory), found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)
    raise FileNotFoundError(f"there is nothing on the way to {directory}")


class Disk:
    """The disk of one directory. A look ends within PATIENCE seconds: what was read last serves where it must."""

    def __init__(
        self,
        directory: Path,
        read: Callable[[Path], DiskReading] = read,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._read_disk = read
        self._clock = clock
        # Nothing is known to be free on a disk that has never answered.
        self._last = DiskReading(str(directory), 0, 0)
        self._begun: dict[object, float] = {}
        self._is_hidden = False

    async def look(self) -> DiskReading:
        """A reading of now, or the last one where the disk does not answer or fails."""
        begun = list(self._begun.values())
        if begun and self._clock() - min(begun) > PATIENCE:
            return self._last
        reason = f"it did not answer within {PATIENCE:g} s"
        try:
            with anyio.move_on_after(PATIENCE):
                self._last = await DISKS.run(self._read, abandon_on_cancel=True)
                self._is_hidden = False
                return self._last
        except OSError as error:
            reason = str(error)
        if not self._is_hidden:
            log.error("disk_not_read", directory=str(self._directory), reason=reason)
        self._is_hidden = True
        return self._last

    def _read(self) -> DiskReading:
        # Noted by the thread itself, for nobody else is sure to be there when it ends.
        ticket = object()
        self._begun[ticket] = self._clock()
        try:
            return self._read_disk(self._directory)
        finally:
            del self._begun[ticket]
