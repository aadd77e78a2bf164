"""What the event stream tells of a hive, read as any client would read it, and whether it makes sense."""

import http.client
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rbee.core import events
from rbee.core.worker import TRANSITIONS, WorkerState

RECONNECT_DELAY = 0.05


@dataclass(frozen=True)
class Step:
    """One transition. ``seen_at``: this process's monotonic clock."""

    seen_at: float
    number: int
    worker_id: str
    model_ref: str
    incarnation: int
    event: str
    before: str
    after: str
    message: str
    exit_reason: str | None


@dataclass
class Story:
    """Follows /v1/events over the deaths of hives; each hive numbers its events from one."""

    host: str
    port: int
    steps: list[Step] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)
    """The model of each worker that was ever told of."""
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._ended = False
        self._number = 0
        self._states: dict[str, str] = {}
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def start(self) -> "Story":
        self._thread.start()
        return self

    def end(self) -> None:
        """The stream must have been closed by the end of its hive."""
        self._ended = True
        self._thread.join(30)

    def wait_step(self, matches: Callable[[Step], bool], what: str, since: int = 0, timeout: float = 60.0) -> Step:
        """The first step from index *since* on that *matches*; it may have been told already."""

        def find() -> Step | None:
            return next((step for step in self.steps[since:] if matches(step)), None)

        with self._changed:
            found = self._changed.wait_for(find, timeout)
        assert found is not None, f"not within {timeout:g} s in the event stream: {what}"
        return found

    def told_states(self) -> dict[str, str]:
        """The last state of each worker that the hive which runs now has told of."""
        with self._changed:
            return dict(self._states)

    def is_upset(self, model_ref: str, since: float, until: float) -> bool:
        """Whether a worker of that model came into or out of any state but ready in that time."""
        return any(
            step.model_ref == model_ref and since <= step.seen_at <= until and step.before != step.after
            for step in list(self.steps)
        )

    def _follow(self) -> None:
        while not self._ended:
            try:
                self._read_one_hive()
            except (OSError, http.client.HTTPException):
                time.sleep(RECONNECT_DELAY)  # nobody listens; the next hive sends no event of its coming

    def _read_one_hive(self) -> None:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=120)
        try:
            connection.request("GET", "/v1/events", headers={"last-event-id": str(self._number)})
            answer = connection.getresponse()
            if answer.status != 200:
                raise http.client.HTTPException(f"status {answer.status}")
            while line := answer.readline():
                if line.startswith(b"data: "):
                    self.take(json.loads(line[6:]))
        finally:
            connection.close()

    def new_hive(self) -> None:
        """The next hive tells its own story; call it while none runs."""
        with self._changed:
            self._number = 0
            self._states.clear()

    def take(self, told: dict[str, Any]) -> None:
        """One event as the stream tells it."""
        number = told.pop("number")
        told.pop("at")
        step = Step(seen_at=time.monotonic(), number=number, **told)
        with self._changed:
            complaint = self._complaint(step)
            if complaint:
                self.complaints.append(f"{complaint}: {step}")
            self._number = number
            self._states[step.worker_id] = step.after
            self.models[step.worker_id] = step.model_ref
            self.steps.append(step)
            self._changed.notify_all()

    def _complaint(self, step: Step) -> str | None:
        if step.number != self._number + 1:
            return f"event {step.number} came after event {self._number}"
        expected = self._states.get(step.worker_id, step.before)
        if step.before != expected:
            return f"the worker was {expected} before"
        kind = getattr(events, step.event, None)
        legal = TRANSITIONS.get((WorkerState(step.before), kind), frozenset()) if kind else frozenset()
        if WorkerState(step.after) not in legal:
            return "a transition that is not in the table"
        return None
