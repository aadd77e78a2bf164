"""The reporter against a hive in memory, with hours between all that it does of itself."""

import json
import queue
from typing import Any

import pytest

from rbee.worker import pacing
from rbee.worker.callback import Announcement
from rbee.worker.heartbeat import Reporter
from rbee.worker.wire import Answer

DEADLINE = 30.0
HOURS = 7200.0


class HiveInMemory:
    """Answers 200 until ``forgets`` is set, then 404 to one beat; ``heard`` has what it was told, in order."""

    address = "memory"

    def __init__(self) -> None:
        self.heard: queue.Queue[str] = queue.Queue()
        self.forgets = False

    def announce(self, announcement: Announcement) -> Answer:
        self.heard.put(announcement.state)
        return Answer(200, b"{}")

    def beat(self, health_status: str, telemetry: dict[str, int | float]) -> Answer:
        forgets, self.forgets = self.forgets, False
        self.heard.put("beat")
        body = {"error": {"code": "worker_not_found", "message": "who?"}} if forgets else {}
        return Answer(404 if forgets else 200, json.dumps(body).encode())


class WellAlways:
    def sample(self) -> tuple[str, dict[str, int | float]]:
        return "healthy", {}


def test_one_that_is_forgotten_does_not_wait_for_a_retry_to_beat_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "RETRY_DELAYS", (HOURS,) * 4)
    hive: Any = HiveInMemory()
    events: list[Any] = []
    reporter = Reporter(hive, WellAlways(), events.append, Announcement("loading", "url"), HOURS, HOURS)

    def hears(*words: str) -> None:
        assert [hive.heard.get(timeout=DEADLINE) for _ in words] == list(words)

    reporter.start()
    try:
        hears("loading", "beat")
        hive.forgets = True
        reporter.announce(Announcement("ready", "url", 77))
        hears("ready", "beat", "ready", "beat")  # the third is the answer to 404, the last to the new welcome
    finally:
        reporter.stop()
    assert [type(event).__name__ for event in events] == ["Registered"]
