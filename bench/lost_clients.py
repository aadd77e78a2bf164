"""How long the real engine works on for a client that has left, another one's stream running beside."""

import http.client
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.measure import Row, at_most, seconds_until, tcp
from rbee.core.auth import engine_key
from tests.hives import running_hive

TIMES = 3
TOKENS = 3000
"""Run to its end such an answer takes far longer than any bar."""
LIMIT = 60.0
"""Seconds; a slot that is at work for longer is not given up at all."""
ASKED: dict[str, Any] = {
    "model": "example",
    "messages": [{"role": "user", "content": "Tell me a long story about bees."}],
    "max_tokens": TOKENS,
    "ignore_eos": True,
}
BATCH = 512
"""Tokens that the engine takes at once, and in which it sees to nothing else."""
BATCHES = 4
WORDS = ("bee", "wax", "sun")


def lost_clients(folder: Path) -> Iterator[Row]:
    with running_hive(folder / "lost") as hive:
        engine = Engine(hive.ready("example"), (hive.state_dir / "secret").read_bytes())
        beside = _asked(hive.port, {**ASKED, "stream": True})
        seconds_until(lambda: engine.slots_at_work() == 1, LIMIT)
        for what, body in (("a stream", {**ASKED, "stream": True}), ("an answer in one piece", ASKED)):
            found = [_seconds_at_work(hive.port, body, engine, pause=0.2) for _ in range(TIMES)]
            yield at_most(f"client of {what} closes to its slot idle, worst of {TIMES}", max(found), 1.0, "s")
        found = [_seconds_at_work(hive.port, _long_prompt(word), engine, pause=0.0) for word in WORDS]
        beside.close()
    measured = f"{statistics.median(found):.3g} s (worst {max(found):.3g})"
    what = f"the same (one piece) during a prompt of {BATCHES} batches, median of {len(WORDS)}"
    yield Row(what, measured, "")


def _long_prompt(word: str) -> dict[str, Any]:
    """One that no other has begun: what is in the engine's cache takes no batch."""
    return {**ASKED, "messages": [{"role": "user", "content": f"{word} " * BATCHES * BATCH}]}


class Engine:
    def __init__(self, worker: dict[str, Any], secret: bytes) -> None:
        self._port = int(worker["url"].rpartition(":")[2])
        self._key = engine_key(secret, worker["worker_id"], worker["incarnation"])

    def slots_at_work(self) -> int:
        """As the engine says itself."""
        connection = tcp(self._port)
        try:
            connection.request("GET", "/slots", headers={"authorization": f"Bearer {self._key}"})
            return sum(slot["is_processing"] for slot in json.loads(connection.getresponse().read()))
        finally:
            connection.close()


def _seconds_at_work(port: int, body: dict[str, Any], engine: Engine, pause: float) -> float:
    """From a client's close, *pause* after its slot was first seen at work, to that slot seen idle."""
    client = _asked(port, body)
    seconds_until(lambda: engine.slots_at_work() == 2, LIMIT)
    time.sleep(pause)
    client.close()
    return seconds_until(lambda: engine.slots_at_work() == 1, LIMIT)


def _asked(port: int, body: dict[str, Any]) -> http.client.HTTPConnection:
    connection = tcp(port)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    return connection
