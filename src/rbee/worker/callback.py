"""The two calls that a worker makes to its hive."""

from typing import Any, Final, NamedTuple

from rbee.worker.log import timestamp
from rbee.worker.wire import Address, Answer, call

CALL_TIMEOUT: Final = 5.0
"""Seconds for one call, answer included (DESIGN section 3)."""


_LONGEST: Final = 1e8
"""Seconds; more is a mistake, and timers overflow far above it."""


class Identity(NamedTuple):
    """What never changes in a worker's announcements. *spec* tells a hive that lost its records what this worker is."""

    worker_id: str
    incarnation: int | None
    model_ref: str
    backend: str
    device: int
    alias: str | None
    slots_total: int
    pid: int
    spec: dict[str, Any] | None = None


class Announcement(NamedTuple):
    """What does change: *state* is loading, ready or failed."""

    state: str
    url: str
    engine_pid: int | None = None
    reason: str | None = None


class HiveClient:
    def __init__(self, address: Address, token: str, identity: Identity) -> None:
        self.address = address
        self.identity = identity
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def announce(self, announcement: Announcement) -> Answer:
        """POST /v1/workers/ready. Raises OSError when the hive gives no answer."""
        body = {**self.identity._asdict(), **announcement._asdict()}
        return self._post("/v1/workers/ready", {name: value for name, value in body.items() if value is not None})

    def beat(self, health_status: str, telemetry: dict[str, int | float]) -> Answer:
        """POST /v1/heartbeat. Raises OSError when the hive gives no answer."""
        body: dict[str, object] = {"worker_id": self.identity.worker_id}
        if self.identity.incarnation is not None:
            body["incarnation"] = self.identity.incarnation
        body |= {"timestamp": timestamp(), "health_status": health_status}
        if telemetry:
            body["telemetry"] = telemetry
        return self._post("/v1/heartbeat", body)

    def _post(self, path: str, body: dict[str, object]) -> Answer:
        return call(self.address, "POST", path, timeout=CALL_TIMEOUT, headers=self._headers, body=body)


def error_of(answer: Answer) -> tuple[str, str]:
    """The code and the message of an error body; where it has none, '' and a sentence with the status."""
    body = answer.json()
    error: Any = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return str(error.get("code", "")), error["message"]
    return "", f"the hive answered with status {answer.status}"


def seconds_in(answer: Answer, name: str) -> float | None:
    """The positive number of seconds under *name* in the answer, None where there is none."""
    body = answer.json()
    value = body.get(name) if isinstance(body, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LONGEST:
        return None
    return float(value)


def text_in(answer: Answer, name: str) -> str:
    body = answer.json()
    value = body.get(name) if isinstance(body, dict) else None
    return value if isinstance(value, str) else ""
