"""One hive a state directory: an exclusive lock that the kernel drops with its holder, however that ends."""

import contextlib
import fcntl
import os
from pathlib import Path

from rbee.core.errors import StateDirectoryInUse


class DirectoryLock:
    """Held until ``release``. Raises StateDirectoryInUse, which names the holder; nothing was touched then."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._fd, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise StateDirectoryInUse(
                f"Another rbee-hive (pid {holder}) uses the state directory {path.parent}. Stop it, or give this one "
                "a directory of its own with --state-dir."
            ) from None
        holder_line = f"{os.getpid()}\n".encode()
        # The lock is what counts, not the pid: a full disk must not keep a hive from its workers. Over what stands
        # there first, for what is cut off may be somebody else's before we have written.
        with contextlib.suppress(OSError):
            os.pwrite(self._fd, holder_line, 0)
            os.ftruncate(self._fd, len(holder_line))

    def release(self) -> None:
        os.close(self._fd)
