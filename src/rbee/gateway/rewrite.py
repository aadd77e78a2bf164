"""Heads written anew: what of a request goes to an upstream, and what of its answer goes to the client. Pure."""

import re
from collections.abc import Iterable
from functools import lru_cache
from http import HTTPStatus
from itertools import count
from secrets import token_hex
from typing import Final

from rbee.core.addresses import bracketed
from rbee.core.routing import Route
from rbee.gateway.head import RequestHead

Fields = Iterable[tuple[bytes, bytes]]

_HOP_BY_HOP: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
        b"content-length",
        b"expect",
    )
)
_SET_BY_US: Final = _HOP_BY_HOP | {b"x-request-id", b"forwarded"}
_NOT_FOR_ENGINES: Final = _SET_BY_US | {
    b"host",
    b"authorization",
    b"x-api-key",
    b"cookie",
    b"origin",  # judged here; an engine that echoes it helps nobody
    b"x-conversation-id",
    b"accept-encoding",  # a compressed answer would hide its token counts, and loopback needs none
}
_NOT_FROM_UPSTREAMS: Final = _HOP_BY_HOP | {b"server", b"x-request-id"}
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode("ascii") for status in HTTPStatus
}


_OWN_IDS: Final = f"req-{token_hex(8)}"
_next_id: Final = count().__next__


def request_id(offered: bytes | None) -> str:
    """The client's own id if it is harmless, else a new one."""
    if offered is not None and _REQUEST_ID.fullmatch(offered):
        return offered.decode("ascii")
    return f"{_OWN_IDS}{_next_id():08x}"


def for_control(head: RequestHead, length: int, request_id: str) -> bytes:
    """The head of a request towards the control API: keys pass, since it decides who may do what."""
    return _request(head, _passing(head, _SET_BY_US), length, request_id)


def for_engine(head: RequestHead, route: Route, length: int, request_id: str) -> bytes:
    """The head of a request towards a worker: its own key, and nothing that belongs to us."""
    if head.engine_lines is None:
        head.engine_lines = _passing(head, _NOT_FOR_ENGINES)
    return _request(head, _own_lines(route.host, route.port, route.key) + head.engine_lines, length, request_id)


@lru_cache(maxsize=1024)
def _own_lines(host: str, port: int, key: str) -> bytes:
    line = f"host: {bracketed(host)}:{port}\r\n"
    return (f"{line}authorization: Bearer {key}\r\n" if key else line).encode()


def _passing(head: RequestHead, dropped: frozenset[bytes]) -> bytes:
    return lines_of(
        (name, value)
        for name, value in head.headers
        if name not in dropped and name not in head.connection and not name.startswith((b"x-rbee-", b"x-forwarded-"))
    )


def _request(head: RequestHead, lines: bytes, length: int, request_id: str) -> bytes:
    size = b"content-length: %d\r\n" % length if length or head.method not in (b"GET", b"HEAD") else b""
    # One of the few lines that each request runs through: one format instead of a list to join.
    return b"%b %b HTTP/1.1\r\n%b%bx-request-id: %b\r\n\r\n" % (
        head.method,
        head.target,
        lines,
        size,
        request_id.encode("ascii"),
    )


def from_upstream(fields: Fields) -> bytes:
    """The lines of an answer's headers that the client gets; who may read an answer is ours to say."""
    return lines_of(
        (name, value)
        for name, value in fields
        if (lower := name.lower()) not in _NOT_FROM_UPSTREAMS and not lower.startswith((b"access-control-", b"x-rbee-"))
    )


def lines_of(fields: Fields) -> bytes:
    """Header lines, each with its end."""
    return b"".join([b"%b: %b\r\n" % field for field in fields])


def status_line(status: int) -> bytes:
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
