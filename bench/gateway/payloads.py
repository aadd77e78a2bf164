"""What goes over the wire when the gateway is measured: requests as clients write them, answers as llama.cpp does.

A request says what it wants of the stub in fields that every proxy hands on: ``max_tokens`` is the number of
chunks, ``seed`` twice the milliseconds between two of them, and one more where all streams' chunks come together.
"""

import json
from typing import Final

MODEL: Final = "stub"
KEY: Final = "sk-bench-0123456789abcdef"
"""The key that the load brings."""
ADMIN_TOKEN: Final = "bench-admin-0123456789"

CONVERSATIONS: Final = 64
"""Different prompts: a proxy that sends a conversation where it was before has several to tell apart."""

_USAGE: Final = {"completion_tokens": 64, "prompt_tokens": 118, "total_tokens": 182}
_TIMINGS: Final = {
    "cache_n": 96,
    "prompt_n": 22,
    "prompt_ms": 71.218,
    "prompt_per_token_ms": 3.237181818181818,
    "prompt_per_second": 308.910668651183,
    "predicted_n": 64,
    "predicted_ms": 671.905,
    "predicted_per_token_ms": 10.498515625,
    "predicted_per_second": 95.25156085756171,
}
_ABOUT: Final = {
    "created": 1760000000,
    "model": MODEL,
    "system_fingerprint": "b6700-3df2244df",
    "id": "chatcmpl-Qx4sXo3mIYb7V8eYqL0dA2m5cPzT1uRk",
}


def request(
    port: int, conversation: int = 0, chunks: int = 0, interval_ms: int = 0, *, together: bool = False
) -> bytes:
    """A chat completion, head and body: a stream of *chunks* chunks if there are any, else one JSON answer."""
    asked: dict[str, object] = {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": f"You are the assistant of user {conversation}. Answer in plain words."},
            {"role": "user", "content": "Why do bees dance, and what do the others learn from it? " * 4},
        ],
        "temperature": 0.7,
        "max_tokens": chunks or 64,
        "seed": 2 * interval_ms + together,
    }
    if chunks:
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    body = json.dumps(asked).encode()
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Accept: application/json",
        "Accept-Encoding: gzip, deflate",
        "Connection: keep-alive",
        "User-Agent: OpenAI/Python 2.6.1",
        "Content-Type: application/json",
        f"Authorization: Bearer {KEY}",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def requests(port: int, chunks: int = 0, interval_ms: int = 0, *, together: bool = False) -> list[bytes]:
    """One of each conversation."""
    return [request(port, number, chunks, interval_ms, together=together) for number in range(CONVERSATIONS)]


def json_answer(value: object, status: str = "200 OK") -> bytes:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status}\r\nServer: llama.cpp\r\nContent-Type: application/json; charset=utf-8\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def completion() -> bytes:
    """The whole answer to a request that is no stream."""
    text = "They dance to tell the others where the flowers are: the angle is the direction, the length the way."
    choice = {"finish_reason": "stop", "index": 0, "message": {"role": "assistant", "content": text}}
    about = {"object": "chat.completion", "usage": _USAGE, "timings": _TIMINGS}
    return json_answer({"choices": [choice], **_ABOUT, **about})


def stream_head() -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )


def stream_chunk() -> bytes:
    """One token, as one event in one chunk of the coding."""
    choice = {"finish_reason": None, "index": 0, "delta": {"content": " flowers"}}
    return _chunk(_event({"choices": [choice], **_ABOUT, "object": "chat.completion.chunk"}))


def stream_end() -> bytes:
    """What comes after the last token: the reason of the end, the usage, the end of the events and of the coding."""
    about = {**_ABOUT, "object": "chat.completion.chunk"}
    last = {"choices": [{"finish_reason": "stop", "index": 0, "delta": {}}], **about}
    used = {"choices": [], **about, "usage": _USAGE, "timings": _TIMINGS}
    return _chunk(_event(last)) + _chunk(_event(used)) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


EVENTS_AT_END: Final = 3
"""Events in ``stream_end``."""


def _event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
