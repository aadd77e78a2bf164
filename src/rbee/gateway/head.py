"""A request head, read strictly: what two servers could understand differently is refused, never repaired.

RFC 9112 sections 2.2, 3, 5 and 6. Pure: bytes in, a value or MalformedRequest out.
"""

import re
from dataclasses import dataclass
from typing import Final, NoReturn

from rbee.core.auth import Principal
from rbee.core.errors import MalformedRequest

# Possessive throughout (++, *+): a hostile head fails in linear time.
_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_FIELD: Final = _TOKEN + rb":[\t -~\x80-\xff]*+\r\n"
_METHOD: Final = rb"[A-Z-]{1,24}+"
_HEAD: Final = re.compile(rb"(" + _METHOD + rb") ([!\"$-~]++) HTTP/1\.([01])\r\n((?:" + _FIELD + rb")*+)\r\n")
_FIELDS: Final = re.compile(rb"([^:]++):[ \t]*+([^\r]*+)\r\n")
_REQUEST_LINE: Final = re.compile(_METHOD + rb" [!\"$-~]++ HTTP/1\.[01]")
_PREMATURE: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n|\Z)")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")

FIELD_LINE: Final = re.compile(_FIELD)
"""One header (or trailer) line with its end."""

_ONCE: Final = frozenset(
    (
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"content-type",
        b"origin",
        b"authorization",
        b"x-api-key",
        b"expect",
    )
)
"""Headers that decide something: of two, we and the next server might believe different ones."""


@dataclass(slots=True)
class RequestHead:
    """One request without its body. Names in ``headers`` and ``fields`` are lower case.

    ``fields`` holds the first value of each name, ``connection`` the lower-case options of Connection,
    ``length`` the declared length of the body in bytes (0 when none was declared). What others found in it and need
    for each request that has the same head: ``engine_lines`` are the headers that an engine gets, ``principal`` is who
    asks, where the door let it in to a model.
    """

    method: bytes
    target: bytes
    path: bytes
    minor: int
    headers: list[tuple[bytes, bytes]]
    fields: dict[bytes, bytes]
    connection: frozenset[bytes]
    length: int
    chunked: bool
    engine_lines: bytes | None = None
    principal: Principal | None = None

    @property
    def keep_alive(self) -> bool:
        return b"close" not in self.connection and (self.minor == 1 or b"keep-alive" in self.connection)

    @property
    def has_body(self) -> bool:
        return self.chunked or self.length > 0

    @property
    def expects_continue(self) -> bool:
        return self.minor == 1 and self.fields.get(b"expect", b"").lower() == b"100-continue"


def parse_head(raw: bytes) -> RequestHead:
    """The head that *raw* spells, up to and with its empty line. Raises MalformedRequest."""
    match = _HEAD.fullmatch(raw)
    if match is None:
        _complain(raw)
    method, target, minor, block = match.groups()
    if not target.startswith(b"/") or method == b"CONNECT":
        raise MalformedRequest("The request target must be a path that starts with '/', and no tunnel is made.")
    headers: list[tuple[bytes, bytes]] = []
    fields: dict[bytes, bytes] = {}
    connection: list[bytes] = []
    for name, value in _FIELDS.findall(block):
        name = name.lower()
        value = value.rstrip(b" \t")
        headers.append((name, value))
        if name == b"connection":
            connection.append(value)
        if name not in fields:
            fields[name] = value
        elif name in _ONCE:
            raise MalformedRequest(f"The header '{name.decode('latin-1')}' was sent more than once.")
    version = int(minor)
    if version and b"host" not in fields:
        raise MalformedRequest("An HTTP/1.1 request needs exactly one Host header.")
    length, chunked = _framing(fields, version)
    options = frozenset(option.strip().lower() for option in b",".join(connection).split(b",")) if connection else _NONE
    return RequestHead(method, target, target.partition(b"?")[0], version, headers, fields, options, length, chunked)


_NONE: Final[frozenset[bytes]] = frozenset()


def _framing(fields: dict[bytes, bytes], minor: int) -> tuple[int, bool]:
    coding, length = fields.get(b"transfer-encoding"), fields.get(b"content-length")
    if coding is not None:
        if length is not None:
            raise MalformedRequest("Content-Length and Transfer-Encoding exclude each other.")
        if minor == 0 or coding.lower() != b"chunked":
            raise MalformedRequest("The only Transfer-Encoding understood is 'chunked', and only on HTTP/1.1.")
        return 0, True
    if length is None:
        return 0, False
    if not _LENGTH.fullmatch(length):
        raise MalformedRequest("Content-Length must be one decimal number.")
    return int(length), False


def _complain(raw: bytes) -> NoReturn:
    line = raw.partition(b"\r\n")[0]
    if not _REQUEST_LINE.fullmatch(line):
        raise MalformedRequest("The request line must be 'METHOD /path HTTP/1.1' (or 1.0) in printable ASCII.")
    raise MalformedRequest("A header line is not 'name: value' on one line without control characters.")


def is_hopeless(part: bytes, start: int, end: int) -> bool:
    """Whether *part*, the beginning of a head, holds a byte that no head may hold (a bare line feed, for one).

    It is looked for between *start* and *end*.
    """
    return _PREMATURE.search(part, start, end) is not None
