"""Processes of this machine: who they are, when they end, how they are ended. Linux first, psutil elsewhere."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import Final

import anyio
import psutil

from rbee.core.exits import UNKNOWN, Exit, from_wait_status
from rbee.core.launch import ProcessIdentity
from rbee.nodes import cgroups
from rbee.nodes.lanes import ENDS

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


def fields_of(data: bytes, *names: bytes, separator: bytes = b":") -> list[int] | None:
    """The numbers behind *names* in lines of ``name: number``, in their order; None where any is missing."""
    data = b"\n" + data
    found: list[int] = []
    for name in names:
        _, there, rest = data.partition(b"\n" + name + separator)
        if not there:
            return None
        found.append(int(rest.split(maxsplit=1)[0]))
    return found


@cache
def boot_id() -> str:
    """An id of this boot of the kernel; the boot's time where there is none.

    Raises OSError where it cannot be read just now: another id would make strangers of all that we know.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, PermissionError):
        return str(int(psutil.boot_time()))


def start_time(pid: int) -> int | None:
    """Field 22 of /proc/pid/stat (clock ticks since boot), or None for a process that is not there.

    Source: proc_pid_stat(5). A zombie is not there: it can neither serve nor be signalled. Raises OSError where it
    cannot be looked at, for want of a descriptor, say.
    """
    is_zombie, started = _birth(pid) or (True, 0)
    return None if is_zombie else started


def _birth(pid: int) -> tuple[bool, int] | None:
    """Whether it only waits to be reaped, and when it was started; None for one that is gone. Raises OSError."""
    if not LINUX:
        return _birth_elsewhere(pid)
    try:
        stat = read_file(f"/proc/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name is in parentheses and may hold any byte, so the fields are counted from its end.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return fields[0] in (b"Z", b"X"), int(fields[19])


def _birth_elsewhere(pid: int) -> tuple[bool, int] | None:
    try:
        process = psutil.Process(pid)
        return process.status() == psutil.STATUS_ZOMBIE, int(process.create_time() * 100)
    except psutil.NoSuchProcess:
        return None
    except psutil.Error as error:
        raise PermissionError(str(error)) from error


def identify(pid: int) -> ProcessIdentity | None:
    """None for a process that is not there. Raises OSError where it cannot be looked at."""
    started = start_time(pid)
    return None if started is None else ProcessIdentity(pid, started, boot_id())


def identify_child(pid: int) -> ProcessIdentity:
    """Of a child that nobody has reaped: its pid is its own, also when it has ended. Raises OSError."""
    birth = _birth(pid)
    if birth is None:
        raise ProcessLookupError(f"there is no process {pid}")
    return ProcessIdentity(pid, birth[1], boot_id())


def same_user(pid: int) -> bool:
    """False for one that is not there, too. Raises OSError where it cannot be looked at."""
    try:
        return psutil.Process(pid).uids().real == os.getuid()
    except psutil.NoSuchProcess:
        return False
    except psutil.Error as error:
        raise PermissionError(str(error)) from error


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
        """Return once it runs no more (it may still want to be reaped).

        Raises ClosedResourceError for one that was let go of.
        """
        if self._closed:
            raise anyio.ClosedResourceError
        if self._fd is None:
            await ENDS.run(_wait_elsewhere, self.pid, abandon_on_cancel=True)
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
        self._is_awaited = False

    @property
    def identity(self) -> ProcessIdentity:
        return self._identity

    async def wait(self) -> Exit:
        self._is_awaited = True
        try:
            await self._handle.wait()
            # It has ended, so this reaps and does not block.
            return UNKNOWN if self._child is None else from_wait_status(self._child.wait())
        finally:
            self._handle.close()

    def close(self) -> None:
        # Whoever waits for it lets go of it, and must not find another process behind its descriptor.
        if not self._is_awaited:
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
    """A hold on this very process; None where it is gone or another user's.

    Raises OSError where that cannot be found out, or it cannot be held.
    """
    with ExitStack() as undo:
        try:
            handle = Handle(identity.pid)
        except ProcessLookupError:
            return None
        undo.callback(handle.close)
        # Asked after it is held: from here on the pid cannot become another process unnoticed.
        if identify(identity.pid) != identity or not same_user(identity.pid):
            return None
        undo.pop_all()
        return handle


def watch(pid: int) -> WatchedProcess | None:
    """A process of the same user that is not our child; None where there is none. Raises OSError as ``hold`` does."""
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
