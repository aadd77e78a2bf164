"""The engine's output: it goes where the keeper's own goes, and its last lines can be read.

A regular file (the hive's log) is handed to the engine as it is and its end read when needed: nothing stands between
the two that could fill. A terminal or a pipe cannot be read back, so there the engine's standard error comes through a
pipe that a thread copies on; should the keeper die, the engine dies with it and never waits for that pipe.
"""

import contextlib
import os
import stat
import threading
from typing import Final, Protocol

from rbee.worker import log

TAIL_BYTES: Final = 65_536
_STDERR: Final = 2
_READABLE: Final = f"/proc/self/fd/{_STDERR}"
"""The hive opens its file for append only; this opens the same file for reading, even where it was renamed."""


class Output(Protocol):
    descriptor: int
    """What the engine gets as its standard error."""

    def started(self) -> None:
        """The engine has its copy of the descriptor."""
        ...

    def last_lines(self) -> list[str]:
        """What the engine wrote last, at most TAIL_BYTES of it, without lines of the keeper's own."""
        ...


def open_output() -> Output:
    """An output for one engine process."""
    if stat.S_ISREG(os.fstat(_STDERR).st_mode) and os.access(_READABLE, os.R_OK):
        return FileOutput()
    return PipeOutput()


class FileOutput:
    def __init__(self) -> None:
        self.descriptor = _STDERR
        self._start = os.fstat(_STDERR).st_size

    def started(self) -> None:
        return

    def last_lines(self) -> list[str]:
        with open(_READABLE, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = self._start if self._start <= size else 0  # smaller than it was: the hive has cut it
            file.seek(max(start, size - TAIL_BYTES))
            return engine_lines(file.read(TAIL_BYTES))


class PipeOutput:
    def __init__(self) -> None:
        self._read, self.descriptor = os.pipe()
        self._tail = bytearray()
        self._copier = threading.Thread(target=self._copy, name="engine-output", daemon=True)

    def started(self) -> None:
        os.close(self.descriptor)
        self._copier.start()

    def _copy(self) -> None:
        while piece := os.read(self._read, TAIL_BYTES):
            self._tail += piece
            del self._tail[:-TAIL_BYTES]
            with contextlib.suppress(OSError):  # nobody may read us any more; the engine must not notice
                os.write(_STDERR, piece)
        os.close(self._read)

    def last_lines(self) -> list[str]:
        self._copier.join(timeout=1.0)  # ends when the engine's last writer is gone
        return engine_lines(bytes(self._tail))


def engine_lines(text: bytes) -> list[str]:
    """The lines in *text* that are not empty and not the keeper's own."""
    lines = (line for line in text.splitlines() if line.strip() and not log.LINE.match(line))
    return [line.decode(errors="replace").rstrip() for line in lines]
