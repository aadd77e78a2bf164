"""The events of a stream, one after the other, made into the answer that would have come in one piece. Pure.

One class an API. Texts are kept in pieces until the end; what is not known is kept as the last event said it.
"""

from typing import Any, Final, Protocol

import msgspec

PIECE_BYTES: Final = 64
"""What a short text costs beside its characters."""


class Fold(Protocol):
    """``held``: bytes that it keeps, about. ``done``: the stream said that it was all."""

    held: int
    done: bool

    def take(self, event: dict[str, Any]) -> None:
        """The next event. Raises KeyError, TypeError or AttributeError for one that has not its API's shape."""

    def value(self) -> dict[str, Any]:
        """The answer, for msgspec to encode."""


class _Pieces:
    """Texts by name, each growing at its end."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {}

    def add(self, name: str, text: str) -> int:
        """How many bytes more are held."""
        self._texts.setdefault(name, []).append(text)
        return len(text) + PIECE_BYTES

    def joined(self) -> dict[str, str]:
        return {name: "".join(pieces) for name, pieces in self._texts.items()}


class _Call:
    """A tool call: its arguments come in pieces, the rest at its start."""

    def __init__(self) -> None:
        self._call: dict[str, Any] = {}
        self._function: dict[str, Any] = {}
        self._pieces = _Pieces()

    def take(self, delta: dict[str, Any]) -> int:
        function = delta.pop("function", None) or {}
        held = self._pieces.add("arguments", function.pop("arguments", None) or "")
        self._function |= function
        self._call |= delta
        return held

    def value(self) -> dict[str, Any]:
        return self._call | {"function": self._function | self._pieces.joined()}


class _Choice:
    def __init__(self) -> None:
        self._last: dict[str, Any] = {}
        self._message: dict[str, Any] = {"role": "assistant"}
        self._pieces = _Pieces()
        self._calls: dict[int, _Call] = {}
        self._logprobs: dict[str, list[bytes]] = {}

    def take(self, choice: dict[str, Any]) -> int:
        delta = choice.pop("delta", None)
        held = self._take_logprobs(choice.get("logprobs"))
        if delta is not None:
            held += self._take_delta(delta)
        text = choice.pop("text", None)
        if text is not None:
            held += self._pieces.add("text", text)
        self._last |= choice
        return held

    def _take_delta(self, delta: dict[str, Any]) -> int:
        held = 0
        for name, value in delta.items():
            if name == "tool_calls":
                for call in value or ():
                    held += self._calls.setdefault(call.pop("index", 0), _Call()).take(call)
            elif isinstance(value, str) and name != "role":
                held += self._pieces.add(name, value)
            else:
                self._message[name] = value
        return held

    def _take_logprobs(self, logprobs: dict[str, Any] | None) -> int:
        held = 0
        for name, entries in (logprobs or {}).items():
            if entries:
                # Kept as bytes: as objects they take ten times as much.
                raw = msgspec.json.encode(entries)[1:-1]
                self._logprobs.setdefault(name, []).append(raw)
                held += len(raw)
        return held

    def value(self, *, is_chat: bool) -> dict[str, Any]:
        value = self._last
        if self._logprobs:
            parts = {name: msgspec.Raw(b"[%b]" % b",".join(raws)) for name, raws in self._logprobs.items()}
            value = value | {"logprobs": parts}
        elif is_chat:
            value.pop("logprobs", None)
        if not is_chat:
            return value | {"text": ""} | self._pieces.joined()
        # A stream without a text starts with null, and llama.cpp's answer in one piece then has an empty one.
        message = self._message | {"content": ""} | self._pieces.joined()
        if self._calls:
            message["tool_calls"] = [self._calls[index].value() for index in sorted(self._calls)]
        return value | {"message": message}


class OpenAIFold:
    """Chat and text completions."""

    def __init__(self, *, is_chat: bool) -> None:
        self.held = 0
        self.done = False
        self._is_chat = is_chat
        self._choices: dict[int, _Choice] = {}
        self._whole: dict[str, Any] = {}
        self._index = 0

    def take(self, event: dict[str, Any]) -> None:
        for choice in event.pop("choices", ()):
            self._index = choice.get("index", 0)
            self.held += self._choices.setdefault(self._index, _Choice()).take(choice)
        event.pop("prompt_progress", None)  # of streams alone
        if self._index:
            # Each choice tells its own, at last right after its end; an answer in one piece has the first choice's.
            event.pop("usage", None)
            event.pop("timings", None)
        self._whole |= event

    def value(self) -> dict[str, Any]:
        choices = [self._choices[index].value(is_chat=self._is_chat) for index in sorted(self._choices)]
        kind = {"object": "chat.completion"} if self._is_chat else {}
        return {"choices": choices} | self._whole | kind


class ResponsesFold:
    """The last event holds all of the answer."""

    def __init__(self) -> None:
        self.held = 0
        self.done = False
        self._response: dict[str, Any] = {}

    def take(self, event: dict[str, Any]) -> None:
        if event["type"] in ("response.completed", "response.incomplete", "response.failed"):
            self._response = event["response"]
            self.done = True

    def value(self) -> dict[str, Any]:
        # llama.cpp tells it in answers of one piece alone, where both are the same.
        return {"completed_at": self._response.get("created_at")} | self._response


class _Block:
    def __init__(self, block: dict[str, Any]) -> None:
        self._block = block
        self._pieces = _Pieces()

    def take(self, delta: dict[str, Any]) -> int:
        texts = [(name, text) for name, text in delta.items() if name != "type" and isinstance(text, str)]
        return sum(self._pieces.add(name, text) for name, text in texts)

    def value(self) -> dict[str, Any]:
        texts = self._pieces.joined()
        arguments = texts.pop("partial_json", None)
        value = self._block | texts
        return value if arguments is None else value | {"input": _arguments(arguments)}


def _arguments(text: str) -> Any:
    """Those of a call that was cut off are none, as in llama.cpp's own answer."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return {}


class MessagesFold:
    """Anthropic's messages."""

    def __init__(self) -> None:
        self.held = 0
        self.done = False
        self._message: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}
        self._blocks: dict[int, _Block] = {}

    def take(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind == "content_block_delta":
            self.held += self._blocks[event["index"]].take(event["delta"])
        elif kind == "content_block_start":
            self._blocks[event["index"]] = _Block(event["content_block"])
        elif kind == "message_start":
            self._message = event["message"]
            self._usage = self._message.get("usage") or {}
        elif kind == "message_delta":
            self._message |= event["delta"]
            self._usage |= event.get("usage") or {}
        elif kind == "message_stop":
            self.done = True

    def value(self) -> dict[str, Any]:
        content = [self._blocks[index].value() for index in sorted(self._blocks)]
        return self._message | {"content": content, "usage": self._usage}
