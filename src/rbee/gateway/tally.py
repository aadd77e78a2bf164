"""How many tokens an answer took, from its first 4 KiB and its last 8 KiB. Unknown is never guessed.

Nothing of the text is kept: the sample lives as long as its request.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

FIRST_BYTES: Final = 4096
LAST_BYTES: Final = 8192
_SLACK_BYTES: Final = 3 * LAST_BYTES

_VALUE: Final = re.compile(r"\s*:\s*(?=\{)")
_JSON: Final = json.JSONDecoder()
_LIMIT: Final = 2**53
"""No counter holds more exactly; an engine that says more does not count."""


class Sample:
    """The first and the last bytes of one answer."""

    __slots__ = ("_joined", "_last", "_size", "first")

    def __init__(self) -> None:
        self.first = b""
        self._last: list[bytes] = []
        self._size = 0
        self._joined = False

    def add(self, data: bytes) -> None:
        if len(self.first) < FIRST_BYTES:
            self.first += data[: FIRST_BYTES - len(self.first)]
        self._last.append(data)
        self._size += len(data)
        if self._size > _SLACK_BYTES:
            # Joined now and then, not with every chunk of a stream.
            self._last = [self.last]
            self._size = len(self._last[0])
            self._joined = True

    @property
    def is_whole(self) -> bool:
        """Whether ``last`` is all of the answer."""
        return self._size <= LAST_BYTES and not self._joined

    @property
    def last(self) -> bytes:
        return b"".join(self._last)[-LAST_BYTES:]


@dataclass(frozen=True, slots=True)
class Tokens:
    """``prompt`` counts all of the prompt's tokens, those from the engine's cache included."""

    prompt: int | None = None
    generated: int | None = None
    cached: int | None = None


def count(sample: Sample) -> Tokens:
    """The counts that the answer itself tells: ``usage``, else llama.cpp's ``timings``."""
    last = sample.last.decode("utf-8", "replace")
    # Anthropic's streams tell the prompt's tokens at their start and the generated ones at their end.
    first = "" if sample.is_whole else sample.first.decode("utf-8", "replace")
    usage: dict[str, Any] = {}
    for value in (*_objects('"usage"', first), *_objects('"usage"', last)):
        usage |= value
    if usage:
        return _of_usage(usage)
    timings: dict[str, Any] = {}
    for value in _objects('"timings"', last):
        timings = value
    return _of_timings(timings)


def _objects(key: str, text: str) -> Iterator[dict[str, Any]]:
    """All objects that are the value of *key*, in order."""
    end = 0
    while (start := text.find(key, end)) >= 0:
        end = start + len(key)
        match = _VALUE.match(text, end)
        # A quote inside a JSON string is escaped: without a backslash before it, it is a key's.
        if match is None or text[start - 1 : start] == "\\":
            continue
        try:
            value, end = _JSON.raw_decode(text, match.end())
        except (ValueError, RecursionError):
            continue
        yield value


def _of_usage(usage: dict[str, Any]) -> Tokens:
    prompt = _first(usage, "prompt_tokens", "input_tokens")
    cached = _number(usage.get("cache_read_input_tokens"))
    if cached is not None and prompt is not None:
        # Anthropic counts the cached ones beside the others, OpenAI among them.
        prompt += cached + (_number(usage.get("cache_creation_input_tokens")) or 0)
    for name in ("prompt_tokens_details", "input_tokens_details"):
        details = usage.get(name)
        if cached is None and isinstance(details, dict):
            cached = _number(details.get("cached_tokens"))
    return Tokens(prompt, _first(usage, "completion_tokens", "output_tokens"), cached)


def _of_timings(timings: dict[str, Any]) -> Tokens:
    fresh, cached = _number(timings.get("prompt_n")), _number(timings.get("cache_n"))
    prompt = fresh + cached if fresh is not None and cached is not None else None
    return Tokens(prompt, _number(timings.get("predicted_n")), cached)


def _first(values: dict[str, Any], *names: str) -> int | None:
    return next((number for name in names if (number := _number(values.get(name))) is not None), None)


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LIMIT else None
