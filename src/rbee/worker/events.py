"""What the keeper's main thread hears of, and the mailbox in which it hears it."""

import contextlib
import os
import select
import signal
from collections import deque
from collections.abc import Iterable
from typing import Final, NamedTuple


class Signalled(NamedTuple):
    number: int


class Registered(NamedTuple):
    """The hive took the first ``loading`` callback. *engine_key* is '' where the engine shall ask for none."""

    engine_key: str


class Refused(NamedTuple):
    """The hive will not have this worker at all; *message* is its own."""

    message: str


class Superseded(NamedTuple):
    """The hive knows a newer incarnation of this worker."""


class Orphaned(NamedTuple):
    """No beat was answered for *seconds* and more."""

    seconds: float


class Broken(NamedTuple):
    """A thread of ours ended by an error that it should not have had; *message* names it."""

    message: str


class EngineReady(NamedTuple):
    """The engine *pid* answers requests."""

    pid: int


class EngineIdle(NamedTuple):
    """The draining engine has no request left, or cannot tell."""


_LONGEST_POLL: Final = (1 << 31) - 1
"""Milliseconds; a C int."""

Event = Signalled | Registered | Refused | Superseded | Orphaned | Broken | EngineReady | EngineIdle


class Mailbox:
    """Events for the main thread, which sleeps in one poll until there is one.

    Signals come through the wakeup descriptor, so nothing but this poll has to be interruptible and an idle keeper
    costs nothing. Any thread may post; the main thread alone may wait. There is one a process, open until its end:
    a thread that still posts must never meet a closed descriptor.
    """

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._read, self._write = os.pipe()
        self._signal_read, self._signal_write = os.pipe()
        for descriptor in (self._read, self._write, self._signal_read, self._signal_write):
            os.set_blocking(descriptor, False)
        self._poll = select.poll()
        self._poll.register(self._read, select.POLLIN)
        self._poll.register(self._signal_read, select.POLLIN)

    def listen_to(self, signals: Iterable[signal.Signals]) -> None:
        signal.set_wakeup_fd(self._signal_write, warn_on_full_buffer=False)
        for number in signals:
            signal.signal(number, _only_wake)

    def post(self, event: Event) -> None:
        self._events.append(event)
        with contextlib.suppress(BlockingIOError):  # a full pipe holds wake-ups enough
            os.write(self._write, b"\0")

    def next(self, timeout: float | None) -> Event | None:
        """The next event, None when *timeout* seconds brought none."""
        if not self._events:
            self._poll.poll(None if timeout is None else min(int(timeout * 1000 + 0.999), _LONGEST_POLL))
        _drained(self._read)
        self._events.extend(Signalled(number) for number in _drained(self._signal_read))
        return self._events.popleft() if self._events else None


def _only_wake(number: int, frame: object) -> None:
    """A handler must exist for Python to write the number into the wakeup descriptor."""


def _drained(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except BlockingIOError:
        return b""
