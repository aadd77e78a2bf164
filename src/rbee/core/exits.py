"""How a worker's process ended, and how to say it."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final


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


_MIB: Final = 2**20
_OOM_KILLER: Final = "the kernel's out-of-memory killer"


@dataclass(frozen=True, slots=True)
class Exit:
    """One end of one process. Both ``code`` and ``signal_number`` are None where nobody could tell.

    ``message`` is the reason in words, empty where there is none beyond code or signal. ``may_be_oom``: nobody could
    tell whether its SIGKILL came from the kernel for want of memory.
    """

    reason: ExitReason
    code: int | None = None
    signal_number: int | None = None
    message: str = ""
    may_be_oom: bool = False

    def how(self) -> str:
        """'exit code 1', 'killed by SIGKILL' (and by whom, where that is known or likely), or 'unknown'."""
        if self.signal_number is None:
            return "unknown" if self.code is None else f"exit code {self.code}"
        return f"killed by {_signal_name(self.signal_number)}{self._by_whom()}"

    def _by_whom(self) -> str:
        if self.signal_number == signal.SIGKILL and self.reason is ExitReason.OOM:
            return f" ({_OOM_KILLER})"
        # With any other reason it was the hive that ended it.
        return f" ({_OOM_KILLER}?)" if self.may_be_oom and self.reason is ExitReason.CRASHED else ""

    def sentence(self) -> str:
        """One sentence: what ended it, and the reason where one is known."""
        what = f"It ended ({self.reason}, {self.how()})"
        return f"{what}: {self.message.rstrip('.')}." if self.message else f"{what}."


UNKNOWN: Final = Exit(ExitReason.CRASHED)
"""It is gone, and nobody can tell more."""


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


def completed(exit_: Exit, word: Mapping[str, object]) -> Exit:
    """*exit_* of a keeper with the *word* that it left: the fields of its exit file.

    Where the engine ended first, how it did says more than the code 1 that the keeper then gives itself.
    """
    code = _number(word, "exit_code")
    if exit_.code is None and exit_.signal_number is None and code is not None:
        exit_ = from_wait_status(code)
    exit_ = replace(exit_, message=str(word.get("message") or ""))
    if word.get("reason") == "stopped":
        return replace(exit_, reason=ExitReason.STOPPED)
    if word.get("reason") == "orphaned":
        # The same silence, met from the other side.
        return replace(exit_, reason=ExitReason.STALE)
    if exit_.reason is ExitReason.CRASHED:
        number, code = _number(word, "engine_signal"), _number(word, "engine_exit_code")
        if number is not None:
            return replace(exit_, code=None, signal_number=number)
        if code is not None:
            return replace(exit_, code=code, signal_number=None)
    return exit_


def _number(word: Mapping[str, object], name: str) -> int | None:
    value = word.get(name)
    return value if isinstance(value, int) else None


def may_be_oom(exit_: Exit) -> bool:
    """Whether the kernel's counters have to be asked: it died by SIGKILL, and no cause is known."""
    return exit_.signal_number == signal.SIGKILL and exit_.reason is ExitReason.CRASHED


def with_oom_verdict(exit_: Exit, oom: bool | None, limit_bytes: int | None = None) -> Exit:
    """*exit_*, for which ``may_be_oom`` holds, with what the counters say; None: they cannot tell.

    *limit_bytes*: its own hard limit, where that is what it ran into.
    """
    if oom is None:
        return replace(exit_, may_be_oom=True)
    if not oom:
        return exit_
    if limit_bytes is None:
        return replace(exit_, reason=ExitReason.OOM)
    words = f"it reached the hard limit of {limit_bytes / _MIB:.0f} MiB"
    return replace(exit_, reason=ExitReason.OOM, message="; ".join(filter(None, (words, exit_.message))))
