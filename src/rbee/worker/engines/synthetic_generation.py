"""What the synthetic engine generates, and its slots: so many at once, the others wait in order."""

import json
import sys
import time
from collections import deque
from functools import partial
from typing import Any, Final, NamedTuple

from rbee.worker.engines.synthetic_http import Connection, Loop, Timer

DEFAULT_MAX_TOKENS: Final = 16
MAX_TOKENS: Final = 10_000_000
_TOKENS_A_TURN: Final = 256
"""So that one fast stream leaves the others their turn."""

_BACKLOG_BYTES: Final = 262_144
"""A client that reads slower than this lags makes its generation wait, as a full pipe would."""

_DEEPEST_PROMPT: Final = 32
"""Levels; a list of messages with a list of parts each has four."""

_WORDS: Final = ("bees ", "build ", "their ", "hive ", "from ", "wax ", "and ", "patience ")


class Pace(NamedTuple):
    first_token_seconds: float
    tokens_per_second: float


class Generation:
    """One request. Raises ValueError for a body that llama.cpp would refuse."""

    def __init__(self, connection: Connection, body: dict[str, Any], chat: bool, own_name: str) -> None:
        self.connection = connection
        self.chat = chat
        self.model = body["model"] if isinstance(body.get("model"), str) and body["model"] else own_name
        self.own_name = own_name
        self.stream = body.get("stream") is True
        options = body.get("stream_options")
        self.include_usage = isinstance(options, dict) and options.get("include_usage") is True
        self.max_tokens = _max_tokens(body)
        self.prompt_tokens = max(1, len(prompt_text(body.get("messages" if chat else "prompt", "")).split()))
        self.made = 0
        self.started = 0.0
        self.first_at = 0.0
        self.timer: Timer | None = None
        self.created = int(time.time())

    def chunk(self, text: str | None, finish: str | None, role: bool = False) -> str:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        if self.chat:
            delta: dict[str, Any] = {"role": "assistant", "content": None} if role else {}
            if text is not None:
                delta["content"] = text
            choice["delta"] = delta
        else:
            choice["text"] = text or ""
        return json.dumps({"choices": [choice], **self._common(chunk=True)})

    def usage_chunk(self) -> str:
        return json.dumps({"choices": [], **self._common(chunk=True), **self._counts()})

    def whole(self) -> dict[str, Any]:
        text = "".join(word_at(i) for i in range(self.made))
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        if self.chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        return {"choices": [choice], **self._common(chunk=False), **self._counts()}

    def _common(self, chunk: bool) -> dict[str, Any]:
        kind = "text_completion" if not self.chat else "chat.completion.chunk" if chunk else "chat.completion"
        name = f"synthetic-{id(self):x}"
        common = {"id": name, "object": kind, "created": self.created, "model": self.model}
        # ``model`` repeats what was asked for; this says who answered.
        return {**common, "system_fingerprint": self.own_name}

    def _counts(self) -> dict[str, Any]:
        prompt_seconds = max(self.first_at - self.started, 1e-6)
        seconds = max(time.monotonic() - self.first_at, 1e-6)
        usage = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.made,
            "total_tokens": self.prompt_tokens + self.made,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
        timings = {
            "cache_n": 0,
            "prompt_n": self.prompt_tokens,
            "prompt_ms": prompt_seconds * 1000,
            "prompt_per_second": self.prompt_tokens / prompt_seconds,
            "predicted_n": self.made,
            "predicted_ms": seconds * 1000,
            "predicted_per_second": self.made / seconds,
        }
        return {"usage": usage, "timings": timings}


class Slots:
    """With *hang_after* tokens made in all, the loop that makes them stops for ever: nothing here moves any more."""

    def __init__(self, loop: Loop, count: int, pace: Pace, hang_after: int | None = None) -> None:
        self._loop = loop
        self._pace = pace
        self._slots: list[Generation | None] = [None] * count
        self._waiting: deque[Generation] = deque()
        self._requests_total = 0
        self._prompt_tokens_total = 0
        self._generated_tokens_total = 0
        self._hang_after = sys.maxsize if hang_after is None else hang_after

    @property
    def _hangs(self) -> bool:
        return self._generated_tokens_total >= self._hang_after

    def submit(self, generation: Generation) -> None:
        if not self._hangs:
            self._requests_total += 1
        generation.connection.on_gone = partial(self._abandon, generation)
        self._waiting.append(generation)
        self._start_waiting()

    def _start_waiting(self) -> None:
        while self._waiting and None in self._slots:
            generation = self._waiting.popleft()
            self._slots[self._slots.index(None)] = generation
            generation.started = time.monotonic()
            first_at = generation.started + self._pace.first_token_seconds
            generation.timer = self._loop.at(first_at, partial(self._first, generation))

    def _first(self, generation: Generation) -> None:
        if self._hangs:
            return
        generation.first_at = time.monotonic()
        self._prompt_tokens_total += generation.prompt_tokens
        if generation.stream:
            generation.connection.start_events()
            if generation.chat:
                generation.connection.send_event(generation.chunk(None, None, role=True))
        self._turn(generation)

    def _turn(self, generation: Generation) -> None:
        """Make the tokens that are due by now, and come again when the next one is."""
        if generation not in self._slots:
            return  # the client went away while this very turn wrote to it
        rate = self._pace.tokens_per_second
        due = int((time.monotonic() - generation.first_at) * rate) + 1
        many = min(due, generation.max_tokens, generation.made + _TOKENS_A_TURN) - generation.made
        many = min(many, self._hang_after - self._generated_tokens_total)
        lags = generation.connection.backlog > _BACKLOG_BYTES
        if lags:
            many = 0
        for _ in range(max(0, many)):
            if generation.stream:
                generation.connection.send_event(generation.chunk(word_at(generation.made), None))
            generation.made += 1
            self._generated_tokens_total += 1
        if generation.made >= generation.max_tokens:
            self._finish(generation)
            return
        if self._hangs:
            return
        next_at = time.monotonic() + 0.01 if lags else generation.first_at + generation.made / rate
        generation.timer = self._loop.at(next_at, partial(self._turn, generation))

    def _finish(self, generation: Generation) -> None:
        if generation not in self._slots:
            return
        self._slots[self._slots.index(generation)] = None
        connection = generation.connection
        if generation.stream:
            connection.send_event(generation.chunk(None, "length"))
            if generation.include_usage:
                connection.send_event(generation.usage_chunk())
            connection.send_event("[DONE]")
            connection.end_events()
        else:
            connection.answer(200, generation.whole())
        self._start_waiting()

    def _abandon(self, generation: Generation) -> None:
        if self._hangs:
            return  # the loop that would free the slot is the one that stopped
        if generation.timer is not None:
            generation.timer.cancel()
        if generation in self._slots:
            self._slots[self._slots.index(generation)] = None
        elif generation in self._waiting:
            self._waiting.remove(generation)
        self._start_waiting()  # in neither: the client went away while its answer was written

    def page(self, ctx_size: int) -> list[dict[str, Any]]:
        return [{"id": i, "n_ctx": ctx_size, "is_processing": g is not None} for i, g in enumerate(self._slots)]

    def metrics(self) -> str:
        busy = sum(g is not None for g in self._slots)
        families = (
            ("llamacpp:prompt_tokens_total", "counter", self._prompt_tokens_total),
            ("llamacpp:tokens_predicted_total", "counter", self._generated_tokens_total),
            ("llamacpp:requests_processing", "gauge", busy),
            ("llamacpp:requests_deferred", "gauge", len(self._waiting)),
            ("llamacpp:predicted_tokens_seconds", "gauge", self._pace.tokens_per_second if busy else 0),
            ("synthetic:requests_total", "counter", self._requests_total),
        )
        return "".join(f"# TYPE {name} {kind}\n{name} {value}\n" for name, kind, value in families)


def word_at(index: int) -> str:
    return _WORDS[index % len(_WORDS)]


def prompt_text(given: Any, levels: int = _DEEPEST_PROMPT) -> str:
    """All text in a prompt: a string, a list of strings or of messages, a message's content in parts.

    Raises ValueError where it is nested deeper than *levels*.
    """
    if isinstance(given, str):
        return given
    if not isinstance(given, list | dict):
        return ""
    if levels == 0:
        raise ValueError(f"the prompt is nested deeper than {_DEEPEST_PROMPT} levels")
    if isinstance(given, list):
        return " ".join(prompt_text(part, levels - 1) for part in given)
    return prompt_text(given.get("content", given.get("text", "")), levels - 1)


def error_body(status: int, message: str, kind: str) -> dict[str, Any]:
    return {"error": {"code": status, "message": message, "type": kind}}


def _max_tokens(body: dict[str, Any]) -> int:
    given = body.get("max_completion_tokens")
    if given is None:
        given = body.get("max_tokens")
    if given is None:
        return DEFAULT_MAX_TOKENS
    if not isinstance(given, int) or isinstance(given, bool) or not 1 <= given <= MAX_TOKENS:
        raise ValueError(f"max_tokens must be a whole number from 1 to {MAX_TOKENS}")
    return given
