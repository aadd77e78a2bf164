"""An answer that its client wants in one piece, asked for as a stream and folded, so that the engine notices a client
that leaves. Pure: bytes of the stream come in, the bytes of the answer go out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from rbee.gateway.folds import Fold, MessagesFold, OpenAIFold, ResponsesFold

_FOLDS: Final[Mapping[bytes, Callable[[], Fold]]] = {
    b"/v1/chat/completions": lambda: OpenAIFold(is_chat=True),
    b"/v1/completions": lambda: OpenAIFold(is_chat=False),
    b"/v1/responses": ResponsesFold,
    b"/v1/messages": MessagesFold,
}
_TELLS_USAGE_IF_ASKED: Final = frozenset((b"/v1/chat/completions", b"/v1/completions"))
_END: Final = b"[DONE]"
_NOTHING: Final = (b"null", b"false", b"[]")


class _Body(msgspec.Struct):
    messages: msgspec.Raw = msgspec.Raw(b"null")
    input: msgspec.Raw = msgspec.Raw(b"null")
    verbose: msgspec.Raw = msgspec.Raw(b"null")
    tools: msgspec.Raw = msgspec.Raw(b"null")
    logprobs: msgspec.Raw = msgspec.Raw(b"null")


class _Message(msgspec.Struct):
    role: str = ""


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_messages = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_message = msgspec.json.Decoder(_Message).decode
_decode = msgspec.json.Decoder().decode


def fold_for(path: bytes, body: bytes) -> "Folding | None":
    """What folds the answer to this request; None where the engine's own answer would say something else.

    llama.cpp repeats the start of an answer that the client has begun only outside of streams, describes itself
    differently there (``verbose``), and refuses ``logprobs`` beside ``tools`` in streams alone.
    """
    make = _FOLDS.get(path)
    if make is None:
        return None
    try:
        found = _decode_body(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if _says(found.verbose) or (_says(found.tools) and _says(found.logprobs)):
        return None
    if _continues(found.messages) or _continues(found.input):
        return None
    return Folding(make())


def _says(value: msgspec.Raw) -> bool:
    return bytes(value) not in _NOTHING


def _continues(messages: msgspec.Raw) -> bool:
    """Whether the last one is the assistant's. What is no list of messages is for the engine to judge."""
    try:
        return _decode_message(_decode_messages(messages)[-1]).role == "assistant"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, IndexError):
        return False


def values_for(path: bytes) -> dict[str, bytes]:
    """What a request's body must say for a stream that holds all of the answer."""
    values = {"stream": b"true"}
    if path in _TELLS_USAGE_IF_ASKED:
        # The client's own, if any, were about a stream that it has not asked for.
        values["stream_options"] = b'{"include_usage":true}'
    if path == b"/v1/chat/completions":
        # Otherwise llama.cpp sends nothing, and so notices no lost client, before the end of the whole prompt.
        values["return_progress"] = b"true"
    return values


@dataclass(frozen=True, slots=True)
class Folded:
    status: int
    body: bytes


class Folding:
    """One stream. After an event that is none it takes no more, and has no answer."""

    def __init__(self, fold: Fold) -> None:
        self._fold = fold
        self._rest = b""
        self._error: dict[str, Any] | None = None
        self._broken = False

    @property
    def held(self) -> int:
        """Bytes that it keeps, about."""
        return self._fold.held + len(self._rest)

    def feed(self, data: bytes) -> None:
        *events, self._rest = (self._rest + data).split(b"\n\n")
        for event in events:
            if self._broken or self._error is not None:
                return
            try:
                self._take(event)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError, AttributeError):
                self._broken = True

    def _take(self, event: bytes) -> None:
        name, _, payload = event.partition(b"data: ")
        if payload == _END:
            self._fold.done = True
            return
        value = _decode(payload) if payload else None
        if not isinstance(value, dict):
            return  # a comment, or null, which llama.cpp sends before the answers to several prompts
        if "error" in value or name.startswith(b"event: error"):
            self._error = value.get("error") or value
        else:
            self._fold.take(value)

    def result(self) -> Folded | None:
        """The answer, or the error that came instead; None where the stream has ended before its end."""
        if self._error is not None:
            code = self._error.get("code") if isinstance(self._error, dict) else None
            status = code if isinstance(code, int) and 400 <= code <= 599 else 500
            return Folded(status, msgspec.json.encode({"error": self._error}))
        if self._broken or not self._fold.done:
            return None
        return Folded(200, msgspec.json.encode(self._fold.value()))
