"""The watcher with an engine in memory that does what no engine should."""

import queue
import threading
from typing import Any

import pytest

from rbee.worker import watch
from rbee.worker.engines.base import Probe
from rbee.worker.events import Broken, Event
from rbee.worker.watch import Watcher

DEADLINE = 30.0


class EngineThatSurprises:
    """Every question to it ends in an error that nobody has thought of."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no idea what {name} is")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_watcher_that_breaks_says_so_and_its_worker_seems_well_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_SAMPLE_TIMEOUT", 0.0)
    posted: queue.Queue[Event] = queue.Queue()
    engine: Any = EngineThatSurprises()
    watcher = Watcher(engine, 4, posted.put)
    watcher.start()
    watcher.watch_load(0, Probe("127.0.0.1", 9, ""))
    watching = [thread for thread in threading.enumerate() if thread.name == "watcher"]
    assert posted.get(timeout=DEADLINE) == Broken("RuntimeError: no idea what ready is")
    for thread in watching:
        thread.join(DEADLINE)  # what it raises belongs to this test
    assert watcher.sample() == ("degraded", {"slots_total": 4})
