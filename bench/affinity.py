"""What affinity gains: the share of prompt tokens that two real workers take from their caches, with it and without."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.measure import Row, tcp
from tests.hives import Hive, running_hive

CONVERSATIONS = 8
TURNS = 5
WORKERS = 2
SLOTS = 4
"""As many as there are conversations, all workers together: each could stay in a slot of its own."""
CTX_SIZE = 2048
INSTRUCTIONS = "You keep bees and answer in a few words. " * 20


@dataclass
class Counted:
    prompt: int = 0
    cached: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def affinity(folder: Path) -> Iterator[Row]:
    shares = {setting: _share(folder / setting, setting) for setting in ("false", "true")}
    what = f"{CONVERSATIONS} conversations of {TURNS} turns on {WORKERS} workers: prompt tokens from their caches"
    yield Row(f"{what}, affinity off", f"{shares['false']:.1%}", "")
    yield Row(f"{what}, affinity on", f"{shares['true']:.1%}", "more than off", shares["true"] > shares["false"])


def _share(folder: Path, setting: str) -> float:
    counted = Counted()
    with running_hive(folder, {"gateway.affinity": setting}) as hive:
        ids = [hive.spawn("example", slots=SLOTS, ctx_size=CTX_SIZE) for _ in range(WORKERS)]
        for worker_id in ids:
            hive.wait_state(worker_id, "idle")
        talks = [threading.Thread(target=_talk, args=(hive, number, counted)) for number in range(CONVERSATIONS)]
        for talk in talks:
            talk.start()
        for talk in talks:
            talk.join()
    assert counted.prompt, "no conversation was answered"
    return counted.cached / counted.prompt


def _talk(hive: Hive, number: int, counted: Counted) -> None:
    messages = [{"role": "system", "content": INSTRUCTIONS}]
    for turn in range(TURNS):
        question = f"Question {number}.{turn}: what does hive {number} need in month {turn + 1}? " * 6
        messages.append({"role": "user", "content": question})
        answer = _ask(hive, messages)
        messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
        with counted.lock:
            counted.prompt += answer["usage"]["prompt_tokens"]
            counted.cached += answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def _ask(hive: Hive, messages: list[dict[str, str]]) -> dict[str, Any]:
    connection = tcp(hive.port)
    connection.timeout = 120
    body = {"model": "example", "messages": messages, "max_tokens": 12, "temperature": 0}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    found = json.loads(answer.read())
    connection.close()
    if answer.status != 200:
        raise RuntimeError(found)
    return dict(found)
