"""Finds, in an engine's last lines, the words that tell a person why it ended. Pure."""

import re
import signal
from collections.abc import Sequence
from typing import Final

MAX_REASON: Final = 600
"""Characters of a reason."""

_RECENT: Final = 40
"""Lines that can have to do with a crash; an error before them was survived."""

_LLAMA_ERROR: Final = re.compile(r"^\d+\.\d\d\.\d{3}\.\d{3} E (?:[a-z]{3,4}\s+)?\w[\w:~().]*: (?P<message>.+)$")
"""``0.00.035.219 E llama_model_load: error loading model: ...``; some lines have the part of the program before."""

_GENERIC: Final = re.compile(
    r"^(?:failed to load model\b.*|exiting due to .*|failed to (?:create|initialize)_?\s?context.*"
    r"|error loading model: llama_model_loader: failed to load model from .*|failed to create_context.*)$"
)
"""What llama.cpp says after it has said what is wrong."""

_TELLING: Final = re.compile(
    r"error|exception|fail|fatal|assert|abort|cannot|couldn't|out of memory|killed", re.IGNORECASE
)
_FRAME: Final = re.compile(r"^\s+|^Traceback ")


def describe_exit(status: int) -> str:
    """'ended with exit code 3', or 'was killed by SIGSEGV'; negative numbers are signals, as in subprocess."""
    if status >= 0:
        return f"ended with exit code {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was killed by {name}"


def load_failure(status: int, lines: Sequence[str]) -> str:
    """Why a load failed: the engine's first error, which is the most precise, else its last telling line."""
    told = _llama_errors(lines)[:2] or _telling(lines)
    return _sentence(f"the engine {describe_exit(status)} while it loaded", told)


def crash(status: int, lines: Sequence[str]) -> str:
    """Why a serving engine ended: the last that it said, unless a signal struck it that it could not see coming."""
    if -status in (signal.SIGKILL, signal.SIGTERM):
        return _sentence(f"the engine {describe_exit(status)}", [])
    recent = lines[-_RECENT:]
    told = _telling(recent) or _llama_errors(recent)[-2:]
    return _sentence(f"the engine {describe_exit(status)}", told)


def _llama_errors(lines: Sequence[str]) -> list[str]:
    found = [match["message"] for match in map(_LLAMA_ERROR.match, lines) if match]
    precise = [message.removeprefix("error loading model: ") for message in found if not _GENERIC.match(message)]
    return list(dict.fromkeys(precise or found))


def _telling(lines: Sequence[str]) -> list[str]:
    """The last line that speaks of an error, not a frame of a traceback; without one the last line of all."""
    plain = [line for line in lines if not _FRAME.match(line)]
    telling = [line for line in plain if _TELLING.search(line)]
    last = (telling or plain)[-1:]
    return [line.strip().removeprefix("error: ") for line in last]


def _sentence(what: str, told: Sequence[str]) -> str:
    text = f"{what}: {'; '.join(told)}" if told else what
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 3] + "..."
