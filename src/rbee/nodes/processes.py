"""Processes of this machine: who they are, when they end, how they are ended. Linux first, psutil elsewhere."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import psutil

from rbee.core.exits import UNKNOWN, Exit, from_wait_status
from rbee.core.launch import ProcessIdentity
from rbee.nodes import cgroups

LINUX: Final = sys.platform == "linux"
_BLOCK: Final = 16 * 1024


def read_file(path: str) -> bytes:
    """A small file of /proc, without the layers of ``open``: these are read by the thousand. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        parts: list[bytes] = []
        while part := os.read(descriptor, _BLOCK):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


@cache
def boot_id() -> str:
    """An id of this boot of the kernel; the boot's time where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(int(psutil.boot_time()))


def start_time(pid: int) -> int | None:
    """Field 22 of /proc/pid/stat (clock ticks since boot), or None for a process that is not there.

    Source: proc_pid_stat(5). A zombie is not there: it can neither serve nor be signalled.
    """
    if not LINUX:
        return _start_time_elsewhere(pid)
    try:
        stat = read_file(f"/proc/{pid}/stat")
    except OSError:
        return None
    # The command's name is in parentheses and may hold any byte, so the fields are counted from its end.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _start_time_elsewhere(pid: int) -> int | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else int(process.create_time() * 100)
    except psutil.Error:
        return None


def identify(pid: int) -> ProcessIdentity | None:
    started = start_time(pid)
    return None if started is None else ProcessIdentity(pid, started, boot_id())


def same_user(pid: int) -> bool:
    try:
        return psutil.Process(pid).uids().real == os.getuid()
    except psutil.Error:
        return False


def leads_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except OSError:
        return False


class Handle:
    """A hold on one process: it can be waited for and signalled, and never becomes another one with the same pid.

    A pidfd on Linux, opened once: when the hive has no descriptor left it can still kill. Elsewhere the pid alone.
    Raises ProcessLookupError for a process that is not there, other OSErrors where it cannot be held.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
        self._closed = False

    def signal(self, number: int) -> bool:
        """Whether the process is still there, if only to be reaped; 0 sends nothing."""
        if self._closed:
            return False
        try:
            if self._fd is None:
                os.kill(self.pid, number)
            else:
                signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            return False
        return True

    async def wait(self) -> None:
        """Return once it runs no more (it may still want to be reaped)."""
        if self._fd is None:
            await anyio.to_thread.run_sync(_wait_elsewhere, self.pid, abandon_on_cancel=True)
        else:
            await anyio.wait_readable(self._fd)

    def close(self) -> None:
        if self._fd is not None and not self._closed:
            os.close(self._fd)
        self._closed = True


class WatchedProcess:
    """A process that one task waits for.

    ``child`` is its Popen where it is ours to reap, ``group`` its cgroup where it has one to itself.
    """

    def __init__(
        self,
        identity: ProcessIdentity,
        handle: Handle,
        child: "subprocess.Popen[bytes] | None" = None,
        group: Path | None = None,
    ) -> None:
        self._identity = identity
        self._handle = handle
        self._child = child
        self._group = group
        self._killed = False

    @property
    def identity(self) -> ProcessIdentity:
        return self._identity

    async def wait(self) -> Exit:
        try:
            await self._handle.wait()
            # It has ended, so this reaps and does not block.
            return UNKNOWN if self._child is None else from_wait_status(self._child.wait())
        finally:
            self._handle.close()

    def terminate(self) -> None:
        self._handle.signal(signal.SIGTERM)

    def kill(self) -> None:
        if not self._handle.signal(0):
            return
        self._killed = True
        kill_group(self._identity.pid)
        if self._group is not None:
            # It may be removed already, or no descriptor be left to write with: the signals above need none.
            with suppress(OSError):
                cgroups.kill(self._group)


def hold(identity: ProcessIdentity) -> Handle | None:
    """A hold on this very process, if it runs and is of the same user."""
    try:
        handle = Handle(identity.pid)
    except OSError:
        return None
    # Asked after it is held: from here on the pid cannot become another process unnoticed.
    if identify(identity.pid) == identity and same_user(identity.pid):
        return handle
    handle.close()
    return None


def watch(pid: int) -> WatchedProcess | None:
    """A process of the same user that is not our child; None where there is none, or it cannot be held."""
    identity = identify(pid)
    handle = None if identity is None else hold(identity)
    return None if identity is None or handle is None else WatchedProcess(identity, handle)


def kill_group(pid: int) -> None:
    """SIGKILL to the process and, where it leads one, to its whole group (workers start as one)."""
    try:
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _wait_elsewhere(pid: int) -> None:
    try:
        psutil.Process(pid).wait()
    except psutil.Error:
        return


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now, as servers do (with SO_REUSEADDR)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def holder_of_port(port: int) -> str:
    """Who listens on *port*, in words: 'python3 (pid 12)', or 'another program' where we may not see it."""
    try:
        for connection in psutil.net_connections("tcp"):
            # An unbound socket has an empty tuple for an address.
            held = getattr(connection.laddr, "port", None)
            if connection.status == psutil.CONN_LISTEN and held == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        pass
    return "another program"
