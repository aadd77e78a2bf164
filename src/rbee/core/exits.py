"""How a worker's process ended, and how to say it."""

import signal
from dataclasses import dataclass
from enum import StrEnum


class ExitReason(StrEnum):
    """Why a worker ended; the values are the label of ``rbee_hive_worker_exits_total``."""

    STOPPED = "stopped"
    CRASHED = "crashed"
    OOM = "oom"
    OVER_MEMORY = "over_memory"
    STALE = "stale"
    UNHEALTHY = "unhealthy"
    LOAD_TIMEOUT = "load_timeout"
    IDLE = "idle"
    EVICTED = "evicted"


@dataclass(frozen=True, slots=True)
class Exit:
    """One end of one process. Both ``code`` and ``signal_number`` are None where nobody could tell.

    ``message`` is the reason in words, empty where there is none beyond code or signal.
    """

    reason: ExitReason
    code: int | None = None
    signal_number: int | None = None
    message: str = ""

    def how(self) -> str:
        """'exit code 1', 'killed by SIGKILL', or 'unknown'."""
        if self.signal_number is not None:
            return f"killed by {_signal_name(self.signal_number)}"
        return "unknown" if self.code is None else f"exit code {self.code}"

    def sentence(self) -> str:
        """One sentence: what ended it, and the reason where one is known."""
        what = f"It ended ({self.reason}, {self.how()})"
        return f"{what}: {self.message.rstrip('.')}." if self.message else f"{what}."


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def from_wait_status(returncode: int, message: str = "") -> Exit:
    """The exit that a *returncode* as subprocess gives it stands for: negative is a signal's number.

    The reason is a guess for a worker that nobody told to end: a clean exit was its own wish, all else a crash.
    """
    if returncode < 0:
        return Exit(ExitReason.CRASHED, signal_number=-returncode, message=message)
    reason = ExitReason.STOPPED if returncode == 0 else ExitReason.CRASHED
    return Exit(reason, code=returncode, message=message)
