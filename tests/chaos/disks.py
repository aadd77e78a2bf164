"""A small file system, for a state directory whose disk can be filled without harm to anybody else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

SIZE = "160m"
"""Room for the logs of some runs above the 74 MiB without which nobody is let in (one log, and 64 MiB)."""
INSIDE = "RBEE_CHAOS_INSIDE"
"""Set for a run that was started again where it may mount: inside a user namespace of its own."""


def mount_small(folder: Path) -> bool:
    """Whether *folder* is now on a small file system of its own."""
    program = shutil.which("mount")
    if program is None:
        return False
    command = [program, "-t", "tmpfs", "-o", f"size={SIZE},mode=0700", "rbee-chaos", str(folder)]
    return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False, timeout=30)


def may_mount() -> bool:
    return os.geteuid() == 0


def enter_namespace(arguments: list[str]) -> None:
    """Start this program again where it may mount; returns where that is not possible either."""
    program = shutil.which("unshare")
    if program is None or os.environ.get(INSIDE):
        return
    probe = subprocess.run([program, "-Urm", "true"], capture_output=True, check=False, timeout=30)
    if probe.returncode == 0:
        environ = {**os.environ, INSIDE: "1"}
        os.execve(program, [program, "-Urm", sys.executable, *arguments], environ)
