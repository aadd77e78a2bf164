"""A timer finer than the loop's, whose smallest step is a millisecond: in that three chunks of 64 streams are due."""

import asyncio
import ctypes
import os
from collections.abc import Callable
from typing import Final

_CLOCK_MONOTONIC: Final = 1
_SHORTEST: Final = 1e-6
"""Seconds; 0 would disarm it."""


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """Calls *ring* once for each ``set`` (timerfd_create(2))."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "no timer")
        self._ring = ring
        loop.add_reader(self._fd, self._rings)

    def set(self, delay: float) -> None:
        """Ring after *delay* seconds, and no more at the time that was set before."""
        seconds, rest = divmod(max(delay, _SHORTEST), 1.0)
        due = _Itimerspec(_Timespec(0, 0), _Timespec(int(seconds), int(rest * 1e9)))
        self._libc.timerfd_settime(self._fd, 0, ctypes.byref(due), None)

    def _rings(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            # Whoever was called before in this round of the loop has set it anew, and it will ring for that.
            return
        self._ring()
