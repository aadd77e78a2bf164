"""Tells the service manager how the daemon is, as sd_notify(3) and sd_watchdog_enabled(3) describe it."""

import os
import socket
from collections.abc import Mapping
from typing import Final

import anyio
import structlog

log = structlog.get_logger(__name__)
_LONGEST_STATUS: Final = 500
"""Characters; the manager takes messages of up to 4096 bytes (NOTIFY_BUFFER_MAX of systemd)."""

_MICROSECONDS: Final = 1_000_000


class Notifier:
    """Sends to the socket that *environ* names; without one every call does nothing.

    *pid* is whom WATCHDOG_PID has to name, this process by default. No call waits and none raises: a manager that
    is gone is logged once. What could not be sent goes with the next message.
    """

    def __init__(self, environ: Mapping[str, str], pid: int | None = None) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._watchdog = _watchdog_timeout(environ, os.getpid() if pid is None else pid) if self._address else None
        self._unsent: dict[str, str] = {}
        self._lost = False
        self._socket = None
        if self._address:
            kind = socket.SOCK_DGRAM | getattr(socket, "SOCK_CLOEXEC", 0)
            self._socket = socket.socket(socket.AF_UNIX, kind)
            self._socket.setblocking(False)

    def ready(self, status: str) -> None:
        """The start is over. *status* is one line for people, as ``systemctl status`` shows it."""
        self._send({"READY": "1", "STATUS": _line(status)})

    def stopping(self, status: str) -> None:
        self._unsent.pop("READY", None)
        self._send({"STOPPING": "1", "STATUS": _line(status)})

    def extend_timeout(self, seconds: float) -> None:
        """Ask for so much time from now on, whatever is under way: start, stop or running."""
        self._send({"EXTEND_TIMEOUT_USEC": str(round(seconds * _MICROSECONDS))})

    async def run_watchdog(self) -> None:
        """Send a sign of life twice within the time that the manager allows; returns at once where it wants none."""
        if self._watchdog is None:
            return
        while True:
            self._send({"WATCHDOG": "1"})
            await anyio.sleep(self._watchdog / 2)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, fields: dict[str, str]) -> None:
        if self._socket is None:
            return
        self._unsent |= fields
        message = "\n".join(f"{name}={value}" for name, value in self._unsent.items())
        try:
            # By address each time: a manager that was started anew listens at the same place.
            self._socket.sendto(message.encode(), self._address)
        except OSError as error:
            if not self._lost:
                log.warning("service_manager_not_reached", error=error.strerror)
            self._lost = True
            return
        self._unsent.clear()
        self._lost = False


def _address(text: str) -> str:
    """What socket.sendto takes: a path, or an abstract name (unix(7)) after a NUL; '' where there is nothing usable."""
    if text.startswith("@"):
        return f"\0{text[1:]}"
    if text.startswith("/"):
        return text
    if text:
        log.warning("service_manager_not_reached", error=f"NOTIFY_SOCKET={text} is of a kind that is not supported")
    return ""


def _watchdog_timeout(environ: Mapping[str, str], pid: int) -> float | None:
    """Seconds after which a daemon without a sign of life is ended; None where nobody watches this process."""
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    text = environ.get("WATCHDOG_USEC", "")
    microseconds = int(text) if text.isascii() and text.isdigit() else 0
    return microseconds / _MICROSECONDS if microseconds > 0 else None


def _line(text: str) -> str:
    return " ".join(text.split())[:_LONGEST_STATUS]
