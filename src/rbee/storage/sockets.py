"""The control API's Unix socket: bound by us, so that nobody but its owner can ever connect."""

import hashlib
import os
import socket
import stat
from pathlib import Path
from typing import Final

import platformdirs

from rbee.core.errors import StartupError

MAX_PATH_BYTES: Final = 107
"""What sun_path of sockaddr_un holds on Linux, less its closing zero (unix(7)); macOS has 103."""


def bind_private(state_dir: Path) -> socket.socket:
    """A listening socket of mode 0600 in a directory of mode 0700.

    It stands in *state_dir*, or, where that path is too long for a socket, in the user's run-time directory. One
    that a dead hive left is replaced: the caller holds the lock of the directory. Raises StartupError.
    """
    path = state_dir / "control.sock"
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        path = _in_runtime_directory(state_dir)
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Created with its final mode: a chmod afterwards would leave a moment in which others can connect.
    before = os.umask(0o177)
    try:
        server.bind(str(path))
    except OSError as error:
        server.close()
        raise StartupError(f"The control socket {path} cannot be made: {error.strerror}.") from error
    finally:
        os.umask(before)
    server.listen(1024)
    server.setblocking(False)
    return server


def _in_runtime_directory(state_dir: Path) -> Path:
    folder = platformdirs.user_runtime_path("rbee", appauthor=False)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise StartupError(f"{folder} must belong to you alone (mode 0700) to hold the control socket.")
    # The same state directory always gets the same name, so that a left socket is found and replaced.
    return folder / f"{hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:16]}.sock"
