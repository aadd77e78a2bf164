"""A web page must not reach us: which Host, which Origin and which content types are let in. Pure."""

import re
from functools import lru_cache
from typing import Final

from rbee.core.errors import Forbidden, Misdirected, UnsupportedMediaType
from rbee.gateway.head import RequestHead

_LOOPBACK: Final = re.compile(
    rb"(?:(?:[a-z0-9-]+\.)*localhost|127(?:\.(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])){3}|\[::1\])(?::[0-9]{1,5})?"
)
_PORT: Final = re.compile(rb":[0-9]{1,5}$")
_JSON: Final = re.compile(rb"application/(?:[a-z0-9!#$&^_.-]+\+)?json[ \t]*(?:;.*)?", re.DOTALL)
_SHOWN: Final = 100
VARY: Final = b"vary: origin\r\n"
"""Where some origins may read answers: a cache must not give one origin the answer to another, or to none."""


def check_host(head: RequestHead, allowed: tuple[str, ...]) -> None:
    """Raise Misdirected unless Host names this machine's loopback or an allowed name.

    HTTP/1.0 allows a request without a Host (load balancers probe like that); no browser sends one.
    """
    host = head.fields.get(b"host")
    if host is not None and not _is_ours(host.lower(), allowed):
        shown = host[:_SHOWN].decode("ascii", "replace")
        raise Misdirected(f"'{shown}' is not a name of this server. Add it to server.allowed_hosts if it should be.")


@lru_cache(maxsize=256)
def _is_ours(host: bytes, allowed: tuple[str, ...]) -> bool:
    if _LOOPBACK.fullmatch(host):
        return True
    names = {name.lower().encode() for name in allowed}
    return host in names or _PORT.sub(b"", host) in names


def check_origin(head: RequestHead, allowed: tuple[str, ...]) -> bytes | None:
    """The foreign origin that may read the answer; None for a request that needs no permission.

    Raises Forbidden for a foreign origin that nobody allowed.
    """
    origin = head.fields.get(b"origin")
    if origin is None:
        return None
    scheme, _, place = origin.lower().partition(b"://")
    if scheme in (b"http", b"https") and place == head.fields.get(b"host", b"").lower():
        return None
    if "*" in allowed or origin.decode("latin-1").lower() in (name.lower() for name in allowed):
        return origin
    shown = origin[:_SHOWN].decode("ascii", "replace")
    raise Forbidden(f"Pages of '{shown}' may not call this server. Add the origin to gateway.cors_origins if they may.")


def is_preflight(head: RequestHead, origin: bytes | None) -> bool:
    return head.method == b"OPTIONS" and origin is not None and b"access-control-request-method" in head.fields


def preflight_headers(head: RequestHead) -> list[tuple[bytes, bytes]]:
    """What an allowed origin is told before it asks (the origin itself is on every answer to it)."""
    wanted = head.fields.get(b"access-control-request-headers", b"authorization, content-type, x-api-key")
    return [
        (b"access-control-allow-methods", b"GET, HEAD, POST, DELETE, OPTIONS"),
        (b"access-control-allow-headers", wanted),
        (b"access-control-max-age", b"600"),
    ]


def origin_lines(origin: bytes) -> bytes:
    """The header lines that let the page of an allowed *origin* read an answer."""
    return (
        b"access-control-allow-origin: %b\r\n"
        b"access-control-expose-headers: x-request-id, x-rbee-worker, x-rbee-queue-ms, retry-after\r\n"
        b"%b" % (origin, VARY)
    )


def check_content_type(head: RequestHead) -> None:
    """Raise UnsupportedMediaType for a body that is not declared as JSON: a page can send any other without asking."""
    if head.has_body and not _JSON.fullmatch(head.fields.get(b"content-type", b"").lower()):
        raise UnsupportedMediaType("A body must be JSON: send 'Content-Type: application/json'.")
