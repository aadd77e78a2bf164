"""Keeps the logs of all workers small: each under its limit, and all of them out of the way of a disk that fills."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import structlog

from rbee.core.resources import DiskReading, state_reserve
from rbee.nodes import disk, logs

log = structlog.get_logger(__name__)

SHORT_BYTES: Final = 64 * 1024
"""What is left of a log then, at most: enough to say why a worker ended."""


class LogRoom:
    """*directory* has one folder a worker. *read_disk* tells of the disk that holds it."""

    def __init__(self, directory: Path, max_bytes: int, read_disk: Callable[[Path], DiskReading] = disk.read) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._read_disk = read_disk
        self._is_short = False

    def keep(self) -> None:
        """Cut what is too long; where the disk is about to fill, more. Blocking."""
        by_worker = list(self._logs())
        for path in (path for of_one in by_worker for path in of_one):
            _cut(path, self._max_bytes)
        try:
            self._make_room(by_worker)
        except OSError as error:
            log.warning("log_not_cut", path=str(self._directory), reason=str(error))

    def _make_room(self, by_worker: list[list[Path]]) -> None:
        before = self._read_disk(self._directory)
        reserve = state_reserve(before)
        if before.free_bytes >= reserve:
            # Not at once: around the edge it would be said every time.
            self._is_short = self._is_short and before.free_bytes < 2 * reserve
            return
        removed, cut = self._free(by_worker, reserve)
        if (removed or cut) and not self._is_short:
            log.warning(
                "logs_cut_for_room",
                directory=str(self._directory),
                free_bytes=before.free_bytes,
                reserve_bytes=reserve,
                removed=removed,
                cut=cut,
            )
            self._is_short = True

    def _free(self, by_worker: list[list[Path]], reserve: int) -> tuple[int, int]:
        """Remove logs of ended lives, oldest first, then cut the others, longest first, until enough is free."""
        removed = cut = 0
        for path in sorted((path for of_one in by_worker for path in of_one[:-1]), key=_written_at):
            if self._read_disk(self._directory).free_bytes >= reserve:
                return removed, cut
            path.unlink(missing_ok=True)
            removed += 1
        for path in sorted((of_one[-1] for of_one in by_worker), key=_size, reverse=True):
            if self._read_disk(self._directory).free_bytes >= reserve:
                break
            cut += _cut(path, SHORT_BYTES)
        return removed, cut

    def _logs(self) -> Iterator[list[Path]]:
        """Those of each worker that has any, oldest first."""
        for folder in _listed(logs.folders, self._directory):
            if found := _listed(logs.of, folder):
                yield found


def _cut(path: Path, max_bytes: int) -> bool:
    try:
        return logs.cut(path, max_bytes)
    except OSError as error:
        log.warning("log_not_cut", path=str(path), reason=str(error))
        return False


def _listed(listing: Callable[[Path], list[Path]], folder: Path) -> list[Path]:
    try:
        return listing(folder)
    except OSError as error:
        log.warning("log_not_cut", path=str(folder), reason=str(error))
        return []


def _written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
