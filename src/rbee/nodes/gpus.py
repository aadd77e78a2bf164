"""The NVIDIA GPUs of this machine, read in a thread of their own: a driver that hangs holds up nothing else."""

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import anyio
import anyio.from_thread
import structlog
from anyio.lowlevel import EventLoopToken, current_token

from rbee.core.environment import sees
from rbee.core.resources import DeviceReading
from rbee.nodes.nvml import DRIVER, Look, Nvml

log = structlog.get_logger(__name__)

ANSWER_TIMEOUT: Final = 1.0
"""Seconds that a driver may take; one read of eight GPUs takes some milliseconds."""
BEGIN_TIMEOUT: Final = 10.0
"""Seconds while the driver may have to be begun: not kept awake, each GPU takes it a second or more."""
RETRY_INTERVAL: Final = 30.0
"""Seconds after which a driver or device that was not there is looked for again."""

_HANGS: Final = "it does not answer"


class Driver(Protocol):
    def look(self, now: float) -> Look: ...


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds; see the constants."""

    answer_timeout: float = ANSWER_TIMEOUT
    begin_timeout: float = BEGIN_TIMEOUT
    retry_interval: float = RETRY_INTERVAL


@dataclass(slots=True)
class _Question:
    """To the thread; ``answered`` is set in the loop that asked."""

    at: float
    deadline: float
    token: EventLoopToken
    answered: anyio.Event = field(default_factory=anyio.Event)


class NvidiaGpus:
    """Nothing is read unless somebody asks, and one reading serves all who ask within its time.

    Of *environ* CUDA_VISIBLE_DEVICES counts: a device that was hidden from us is not ours to give.
    """

    def __init__(self, environ: Mapping[str, str], driver: Driver | None = None, pace: Pace | None = None) -> None:
        self._pace = pace or Pace()
        self._visible = environ.get("CUDA_VISIBLE_DEVICES")
        self._driver = driver or Nvml(self._pace.retry_interval)
        self._questions: queue.SimpleQueue[_Question] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._asked: _Question | None = None
        self._devices: tuple[DeviceReading, ...] = ()
        self._read_at = float("-inf")
        self._nothing_until = float("-inf")
        self._has_answered = False
        self.is_failing = False
        self._told: dict[str, str] = {}

    async def read(self, max_age: float = 2.0) -> tuple[DeviceReading, ...]:
        """The devices as they were at most *max_age* seconds ago, by number; those that are missing, or whose driver
        hangs, are not among them. Raises nothing."""
        now = anyio.current_time()
        if now - self._read_at < max_age or now < self._nothing_until:
            return self._devices
        question = self._asked or self._ask(now)
        with anyio.move_on_after(question.deadline - now):
            await question.answered.wait()
            return self._devices
        # As long as it hangs nobody waits for it again: the deadline of this question is over for all who follow.
        self.is_failing = True
        self._tell({DRIVER: _HANGS})
        return ()

    def _ask(self, now: float) -> _Question:
        # A device that is set aside is told of for good, and nothing is begun anew for it.
        may_begin = not self._has_answered or self.is_failing or DRIVER in self._told
        timeout = self._pace.begin_timeout if may_begin else self._pace.answer_timeout
        question = self._asked = _Question(now, now + timeout, current_token())
        if self._thread is None:
            # Not of a pool, and a daemon: one that hangs in the driver must neither be waited for nor end us.
            self._thread = threading.Thread(target=self._serve, name="rbee-nvml", daemon=True)
            self._thread.start()
        self._questions.put(question)
        return question

    def _serve(self) -> None:
        while True:
            question = self._questions.get()
            look = self._driver.look(question.at)
            try:
                anyio.from_thread.run_sync(self._take, question, look, token=question.token)
            except RuntimeError:
                return  # that loop has ended, and with it everybody who asks

    def _take(self, question: _Question, look: Look) -> None:
        self._asked = None
        self._has_answered = True
        self.is_failing = look.is_failing
        self._devices = tuple(device for device in look.devices if sees(self._visible, device.index, device.uuid))
        # Since it was asked for: that is the most that it can be old.
        self._read_at = question.at
        self._nothing_until = question.at + look.nothing_for
        self._tell(look.problems)
        question.answered.set()

    def _tell(self, problems: Mapping[str, str]) -> None:
        """Say what is new, once; what is no longer so, once."""
        for name in problems.keys() - self._told.keys():
            _say(name, problems[name])
        # Nothing is known of single devices while the driver is away.
        gone = set() if DRIVER in problems else self._told.keys() - problems.keys()
        for name in gone:
            log.info("gpu_driver_is_back" if name == DRIVER else "gpu_is_back", gpu=name)
        self._told = {name: reason for name, reason in {**self._told, **problems}.items() if name not in gone}


def _say(name: str, reason: str) -> None:
    say: Callable[..., object] = log.warning
    if name != DRIVER:
        say("gpu_missing", gpu=int(name), reason=reason)
    else:
        # Most machines have none, and nothing is wrong with them.
        say = log.info if "libnvidia-ml" in reason else say
        say("gpu_driver_missing", reason=reason)
