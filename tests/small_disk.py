"""A process with a small disk of its own: a tmpfs in a mount namespace that is gone with the process."""

import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.tools import need_tool


def with_small_disk(directory: Path, options: str = "size=256k") -> list[str]:
    """What to put before a command so that *directory* is a tmpfs with these mount options, for that process alone.

    The process keeps its pid; from outside, its files are under ``seen_by``. Skips where the system allows no mount.
    """
    prefix = [*_namespace(), "sh", "-c", 'mount -t tmpfs -o "$0" tmpfs "$1" && shift && exec "$@"']
    return [*prefix, options, str(directory)]


def seen_by(pid: int, path: Path) -> Path:
    """*path* as the process *pid* sees it."""
    return Path(f"/proc/{pid}/root{path}")


def fill(directory: Path) -> Path:
    """Take every byte that is left; remove the returned file to give them back."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:
                continue
    return ballast


@cache
def _namespace() -> tuple[str, ...]:
    unshare = need_tool("unshare")
    command = (unshare, "-m") if os.geteuid() == 0 else (unshare, "-Urm")
    tried = subprocess.run([*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"no mount namespace here: {tried.stderr.decode().strip()}")
    return command
