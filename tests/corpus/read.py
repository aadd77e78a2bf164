"""Reads the corpora beside it: hostile requests, and answers of upstreams that lie."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

CHAT = "/v1/chat/completions"
_HOST = "HTTP/1.1\r\nHost: localhost\r\n"
NAMES = {
    "post": f"POST {CHAT} {_HOST}Content-Type: application/json\r\n",
    "control": f"POST /v1/a {_HOST}Content-Type: application/json\r\n",
    "get": f"GET /v1/a {_HOST}",
    "ask": '{"model":"synthetic:a"}',
    "smuggled": f"GET /v1/smuggled {_HOST}\r\n",
    "livez": f"GET /livez {_HOST}\r\n",
}
_NAME = re.compile("<(" + "|".join(NAMES) + ")>")
_REPEAT = re.compile(r"<([^<>]+?)\*(\d+)>", re.DOTALL)


def spelled(text: str) -> bytes:
    """The bytes that *text* stands for."""
    text = _REPEAT.sub(lambda match: match[1] * int(match[2]), text)
    return _NAME.sub(lambda match: NAMES[match[1]], text).encode("latin-1")


@dataclass(frozen=True)
class HostileRequest:
    """One row of ``requests.toml``, which says what each field means."""

    name: str
    raw: bytes
    answers: tuple[int, ...]
    closed: bool
    seen: tuple[str, ...]
    end: str
    early: bool = False

    @property
    def is_head(self) -> bool:
        return self.raw.startswith(b"HEAD ")


def _request(name: str, send: str, **row: object) -> HostileRequest:
    raw = spelled(send)
    body = row.pop("body", None)
    if body is not None:
        data = spelled(str(body))
        raw += b"Content-Length: %d\r\n\r\n" % len(data) + data
    values = {"answers": [400], "closed": True, "seen": [], "end": ""} | row
    answers, seen = tuple(values.pop("answers")), tuple(values.pop("seen"))
    return HostileRequest(name, raw, answers, seen=seen, **values)


def requests() -> list[HostileRequest]:
    rows = tomllib.loads(Path(__file__).with_name("requests.toml").read_text(encoding="utf-8"))
    return [_request(name, **row) for name, row in rows.items()]


@dataclass(frozen=True)
class Answer:
    """One row of ``answers.toml``, which says what each field means."""

    name: str
    raw: bytes
    ends: str = "close"
    asked: str = "POST"
    becomes: str = "lost"
    status: int = 200
    body: bytes = b""
    kept: bool | None = None


def answers() -> list[Answer]:
    rows = tomllib.loads(Path(__file__).with_name("answers.toml").read_text(encoding="utf-8"))
    return [
        Answer(name, spelled(row.pop("send")), body=str(row.pop("body", "")).encode(), **row)
        for name, row in rows.items()
    ]
