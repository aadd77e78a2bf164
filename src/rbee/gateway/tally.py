"""How many tokens an answer took and why it ended, from its first 4 KiB and its last 8 KiB. Unknown is never guessed.

Nothing of the text is kept: the sample goes once it is read, a quarter of a second after its request at the latest.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Final, NamedTuple

import msgspec

FIRST_BYTES: Final = 4096
LAST_BYTES: Final = 8192
_SLACK_BYTES: Final = 3 * LAST_BYTES
_EVENTS: Final = 8
"""How many of a stream's last events are looked into: what is told at its end stands in the last two or three."""
_NOT_ENDED: Final = (None, "in_progress", "queued")
"""What a Responses answer says of itself while there is no reason yet why it ended."""
_PLACES: Final = 4
"""How many places of a long answer that look like its usage are tried before it counts as unknown."""


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


class Told(NamedTuple):
    """``prompt`` counts all of the prompt's tokens, those from the engine's cache included.

    ``generating_seconds`` is the engine's own measure; ``finish`` is spelled as the engine spells it.
    """

    prompt: int | None = None
    generated: int | None = None
    cached: int | None = None
    generating_seconds: float | None = None
    finish: str | None = None


_NOTHING: Final = Told()

# No counter holds more than 2**53 exactly; an engine that says more does not count.
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
_Word = Annotated[str, msgspec.Meta(max_length=64)]


class _Details(msgspec.Struct, gc=False):
    cached_tokens: _Count | None = None


class _Usage(msgspec.Struct, gc=False):
    """OpenAI's names, then those of its Responses and of Anthropic's Messages, then Anthropic's alone."""

    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: _Count | None = None
    cache_creation_input_tokens: _Count | None = None


class _Timings(msgspec.Struct, gc=False):
    """llama.cpp's own: ``prompt_n`` are the tokens that did not come from the cache."""

    prompt_n: _Count | None = None
    cache_n: _Count | None = None
    predicted_n: _Count | None = None
    predicted_ms: Annotated[float, msgspec.Meta(ge=0)] | None = None


class _Choice(msgspec.Struct, gc=False):
    finish_reason: _Word | None = None


class _Incomplete(msgspec.Struct, gc=False):
    reason: _Word | None = None


class _Ending(msgspec.Struct, gc=False):
    stop_reason: _Word | None = None


class _Answer(msgspec.Struct, gc=False):
    """What is read of an answer; all else is skipped, texts above all."""

    usage: _Usage | None = None
    timings: _Timings | None = None
    choices: list[_Choice] = []
    stop_reason: _Word | None = None
    status: _Word | None = None
    incomplete_details: _Incomplete | None = None
    input_tokens: _Count | None = None


class _Event(_Answer, gc=False):
    """The same of one event of a stream, where some of it lies deeper."""

    message: _Answer | None = None
    response: _Answer | None = None
    delta: msgspec.Raw = msgspec.Raw()


_answer = msgspec.json.Decoder(_Answer).decode
_event = msgspec.json.Decoder(_Event).decode
_ending = msgspec.json.Decoder(_Ending).decode
_usage = msgspec.json.Decoder(_Usage).decode
_timings = msgspec.json.Decoder(_Timings).decode
_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read(sample: Sample, *, complete: bool) -> Told:
    """What the answer itself tells: ``usage``, else llama.cpp's ``timings``; and why it ended.

    *complete*: the engine has sent all of it, so that its last byte is the document's.
    """
    last = sample.last
    if not sample.first.lstrip().startswith(b"{"):
        return _read_stream(sample, last, complete=complete)
    if not sample.is_whole:
        return _read_parts(sample.first, last if complete else b"")
    try:
        return _told(_answer(last))
    except _ERRORS:
        return _NOTHING


def _told(answer: _Answer) -> Told:
    usage, timings = answer.usage, answer.timings
    finish = answer.stop_reason
    if answer.choices:
        finish = answer.choices[0].finish_reason
    elif answer.incomplete_details is not None:
        finish = answer.incomplete_details.reason
    elif finish is None and answer.status not in _NOT_ENDED:
        finish = answer.status
    seconds = None if timings is None else _seconds(timings)
    if usage is not None:
        return Told(*_counts(usage), seconds, finish)
    if timings is not None:
        fresh, cached = timings.prompt_n, timings.cache_n
        prompt = None if fresh is None or cached is None else fresh + cached
        return Told(prompt, timings.predicted_n, cached, seconds, finish)
    return Told(answer.input_tokens, None, None, None, finish)


def _seconds(timings: _Timings) -> float | None:
    return None if timings.predicted_ms is None else timings.predicted_ms / 1000


def _counts(usage: _Usage) -> tuple[int | None, int | None, int | None]:
    if usage.prompt_tokens is not None or usage.completion_tokens is not None:
        details = usage.prompt_tokens_details
        return usage.prompt_tokens, usage.completion_tokens, None if details is None else details.cached_tokens
    prompt, cached = usage.input_tokens, usage.cache_read_input_tokens
    if cached is not None and prompt is not None:
        # Anthropic counts the cached ones beside the others, OpenAI among them.
        prompt += cached + (usage.cache_creation_input_tokens or 0)
    elif usage.input_tokens_details is not None:
        cached = usage.input_tokens_details.cached_tokens
    return prompt, usage.output_tokens, cached


# streams


def _read_stream(sample: Sample, last: bytes, *, complete: bool) -> Told:
    """Back from the last event until all is known; Anthropic's first one tells the prompt's tokens."""
    found = _NOTHING
    for data in _events(last, is_whole=sample.is_whole):
        found = _merged(found, _of_event(data))
        if found.finish is not None and found.prompt is not None and found.generated is not None:
            return found
    if found.prompt is None and found.generated is not None:
        start = sample.first.find(b"data:")
        if start >= 0:
            found = _merged(found, _of_event(sample.first[start + 5 :].partition(b"\n")[0]))
    if found.generated is None and complete and not sample.is_whole:
        # A Responses stream ends with all of the response once more, in one event that may be longer than the part.
        found = _merged(Told(*(_counts_at(last.rstrip(), 2, from_end=True) or ())), found)
    return found


def _events(text: bytes, *, is_whole: bool) -> Iterator[bytes]:
    """The data of the last events, the last one first. The first line of a part is not one."""
    end = len(text)
    for _ in range(_EVENTS):
        start = text.rfind(b"\ndata:", 0, end)
        if start < 0:
            if is_whole and text.startswith(b"data:"):
                yield text[5:end].partition(b"\n")[0]
            return
        line = text[start + 6 : end]
        yield line.partition(b"\n")[0] if b"\n" in line else line
        end = start


def _of_event(data: bytes) -> Told:
    try:
        event = _event(data)
        if event.response is not None:
            return _told(event.response)
        if event.message is not None:
            return _told(event.message)
        told = _told(event)
        if event.usage is not None and not event.choices and event.delta:
            return told._replace(finish=_ending(event.delta).stop_reason)
    except _ERRORS:
        return _NOTHING
    return told


def _merged(later: Told, earlier: Told) -> Told:
    """What the *later* event told, and for the rest what the *earlier* one did."""
    if later is _NOTHING:
        return earlier
    return Told(
        earlier.prompt if later.prompt is None else later.prompt,
        earlier.generated if later.generated is None else later.generated,
        earlier.cached if later.cached is None else later.cached,
        earlier.generating_seconds if later.generating_seconds is None else later.generating_seconds,
        later.finish or earlier.finish,
    )


# answers of which only the two ends are here

_OBJECT: Final = re.compile(rb'\s*:\s*(\{(?:[^{}"]|"[^"\\]*+"|\{[^{}"]*+(?:"[^"\\]*+"[^{}"]*+)*+\})*+\})')
_WORD: Final = re.compile(rb'\s*:\s*"([a-z_]{1,64})"')
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)


def _read_parts(first: bytes, last: bytes) -> Told:
    """Of a JSON answer too long to be here whole. An embedding tells its usage before its numbers."""
    counts = _counts_at(first, 1, from_end=False) or _counts_at(last, 1, from_end=True) or (None, None, None)
    finish = None
    for key, depth in ((b'"finish_reason"', 3), (b'"stop_reason"', 1), (b'"status"', 1)):
        word = _value(first, key, _WORD, depth, from_end=False) or _value(last, key, _WORD, depth, from_end=True)
        if word is not None and finish is None:
            finish = word.decode("ascii")
    return Told(*counts, _seconds_at_end(last), finish if finish not in _NOT_ENDED else None)


def _seconds_at_end(last: bytes) -> float | None:
    found = _value(last, b'"timings"', _OBJECT, 1, from_end=True)
    try:
        return None if found is None else _seconds(_timings(found))
    except _ERRORS:
        return None


def _counts_at(text: bytes, depth: int, *, from_end: bool) -> tuple[int | None, int | None, int | None] | None:
    found = _value(text, b'"usage"', _OBJECT, depth, from_end=from_end)
    try:
        return None if found is None else _counts(_usage(found))
    except _ERRORS:
        return None


def _value(text: bytes, key: bytes, value: re.Pattern[bytes], depth: int, *, from_end: bool) -> bytes | None:
    """The *value* of *key* that lies *depth* brackets deep in a document which *text* begins, or ends (*from_end*).

    A quote inside a JSON string is escaped, so what stands there never looks like a key. An object that the model
    has written may stand in the answer as it is (the input of one of Anthropic's tools), but it lies deeper.
    """
    place = len(text) if from_end else -1
    for _ in range(_PLACES):
        place = text.rfind(key, 0, place) if from_end else text.find(key, place + 1)
        if place < 0:
            return None
        match = value.match(text, place + len(key))
        if match is None or text[place - 1 : place] == b"\\":
            continue
        outside = _STRING.sub(b"", text[match.end() :] if from_end else text[:place])
        opened = outside.count(b"{") + outside.count(b"[") - outside.count(b"}") - outside.count(b"]")
        if (-opened if from_end else opened) == depth:
            return match[1]
    return None
