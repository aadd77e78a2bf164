"""What affinity gains: the share of prompt tokens that two real workers take from their caches, with it and without."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

from bench.measure import Row, tcp
from tests.hives import Hive, running_hive

CONVERSATIONS = 8
TURNS = 5
WORKERS = 2
CLIENTS = 3
"""At once: fewer than there are slots, so that there is a choice."""
SLOTS = 4
"""As many as there are conversations, all workers together: each could stay in a slot of its own."""
CTX_SIZE = 2048
INSTRUCTIONS = "You keep bees and answer in a few words. " * 12


def affinity(folder: Path) -> Iterator[Row]:
    shares = {setting: _share(folder / setting, setting) for setting in ("false", "true")}
    what = f"{CONVERSATIONS} conversations of {TURNS} turns on {WORKERS} workers: prompt tokens from their caches"
    yield Row(f"{what}, affinity off", f"{shares['false']:.1%}", "")
    yield Row(f"{what}, affinity on", f"{shares['true']:.1%}", "more than off", shares["true"] > shares["false"])


def _share(folder: Path, setting: str) -> float:
    with running_hive(folder, {"gateway.affinity": setting}) as hive:
        ids = [hive.spawn("example", slots=SLOTS, ctx_size=CTX_SIZE) for _ in range(WORKERS)]
        for worker_id in ids:
            hive.wait_state(worker_id, "idle")
        talks = [Talk(number) for number in range(CONVERSATIONS)]
        random = Random(5)
        with ThreadPoolExecutor(CLIENTS) as clients:
            for _ in range(TURNS):
                # People answer in no order: who asked first in the last round need not in this one.
                random.shuffle(talks)
                list(clients.map(lambda talk: talk.take_turn(hive), talks))
    return sum(talk.cached for talk in talks) / sum(talk.prompt for talk in talks)


class Talk:
    """One conversation: ``prompt`` and ``cached`` count the tokens of all its turns."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._messages = [{"role": "system", "content": INSTRUCTIONS}]
        self.prompt = self.cached = 0

    def take_turn(self, hive: Hive) -> None:
        question = f"{len(self._messages)}. What does hive {self._number} need in this month of the year? " * 4
        self._messages.append({"role": "user", "content": question})
        answer = _ask(hive, self._messages)
        self._messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
        self.prompt += answer["usage"]["prompt_tokens"]
        self.cached += answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def _ask(hive: Hive, messages: list[dict[str, str]]) -> dict[str, Any]:
    connection = tcp(hive.port)
    connection.timeout = 120
    body = {"model": "example", "messages": messages, "max_tokens": 4, "temperature": 0}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    found = json.loads(answer.read())
    connection.close()
    if answer.status != 200:
        raise RuntimeError(found)
    return dict(found)
