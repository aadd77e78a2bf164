"""How much room there is on the file system of a directory, also while that does not answer."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from rbee.core.resources import DiskReading

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
    """The disk of one directory. What was read last serves while it fails, or is away. Safe between threads."""

    def __init__(
        self,
        directory: Path,
        read: Callable[[Path], DiskReading] = read,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._read_disk = read
        self._clock = clock
        self._begun: dict[object, float] = {}
        self._is_hidden = False
        # Nothing is known to be free on a disk that has never answered.
        self.last = DiskReading(str(directory), 0, 0)

    def read(self) -> DiskReading:
        """A reading of now, or the last one. Blocking, as ``read`` is, unless an earlier call is stuck."""
        begun = list(self._begun.values())
        if begun and self._clock() - min(begun) > PATIENCE:
            return self.last
        # Noted by whoever reads, for nobody else is sure to be there when that ends.
        ticket = object()
        self._begun[ticket] = self._clock()
        try:
            self.last = self._read_disk(self._directory)
        except OSError as error:
            self._say_once(str(error))
        else:
            self._is_hidden = False
        finally:
            del self._begun[ticket]
        return self.last

    def give_up(self) -> None:
        """Nobody waits for it any more."""
        if self._begun:
            self._say_once(f"it did not answer within {PATIENCE:g} s")

    def _say_once(self, reason: str) -> None:
        if not self._is_hidden:
            log.error("disk_not_read", directory=str(self._directory), reason=reason)
        self._is_hidden = True
