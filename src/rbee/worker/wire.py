"""HTTP/1.1, one request a connection, with one deadline for the whole of it.

Not http.client: it imports ssl and email, which is 6 MB of a keeper's 20 even where nothing is encrypted, and its
timeout is for each read, so a peer that sends a byte now and then would hold a beat for ever.
"""

import json
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from rbee.core.addresses import base_url, bracketed

MAX_ANSWER_BYTES: Final = 4 << 20
_READ_BYTES: Final = 65_536
_LONGEST_LENGTH: Final = 19
"""Digits of a length that may be one; Python refuses to read more than 4300."""


class BadAnswer(OSError):
    """What came back is not HTTP, is cut short, or is larger than MAX_ANSWER_BYTES."""


class Address(NamedTuple):
    """Where a server listens. *path* comes before the path of each request; *unix_socket* replaces host and port."""

    host: str
    port: int
    path: str = ""
    unix_socket: str = ""
    encrypted: bool = False

    def __str__(self) -> str:
        if self.unix_socket:
            return f"unix:{self.unix_socket}"
        return base_url(self.host, self.port, "https" if self.encrypted else "http") + self.path


class Answer(NamedTuple):
    status: int
    body: bytes

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    def json(self) -> Any:
        """The body's JSON value; None where it is not JSON, or nested too deeply to be read."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


def parse_address(url: str) -> Address:
    """The address in *url*: ``http://``, ``https://`` or ``unix:/path``. Raises ValueError that says what is wrong."""
    if url.startswith("unix:"):
        path = url.removeprefix("unix:")
        if not path.startswith("/"):
            raise ValueError(f"'{url}' needs an absolute path, as in unix:/run/rbee/hive.sock")
        return Address("localhost", 0, unix_socket=path)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"'{url}' is none of http://host:port, https://host:port and unix:/path/to/socket")
    if parts.username is not None or parts.password is not None:
        raise ValueError("no user or password in the address: the token comes from RBEE_WORKER_TOKEN or RBEE_API_TOKEN")
    try:
        # The resolver encodes it so; a name that cannot be is no name, and is told now, not at every beat.
        parts.hostname.encode("idna")
    except UnicodeError:
        raise ValueError(f"'{url}' names a host that cannot exist") from None
    encrypted = parts.scheme == "https"
    path = parts.path.rstrip("/")
    if not path.isascii() or not path.isprintable() or " " in path:
        raise ValueError(f"'{url}' has a path that is not plain ASCII")
    return Address(parts.hostname, parts.port or (443 if encrypted else 80), path, encrypted=encrypted)


def call(
    address: Address,
    method: str,
    path: str,
    *,
    timeout: float,
    headers: Mapping[str, str] | None = None,
    body: object = None,
) -> Answer:
    """One request, *body* as JSON. Raises OSError (TimeoutError, BadAnswer) when no whole answer came in *timeout*."""
    deadline = time.monotonic() + timeout
    payload = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {address.path}{path} HTTP/1.1", f"Host: {_host(address)}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(payload)}"]
    with _connect(address, timeout) as connection:
        connection.settimeout(_left(deadline))
        connection.sendall("\r\n".join([*lines, "", ""]).encode("ascii") + payload)

        def read() -> bytes:
            connection.settimeout(_left(deadline))
            return connection.recv(_READ_BYTES)

        return _read_answer(read)


def _connect(address: Address, timeout: float) -> socket.socket:
    if address.unix_socket:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(timeout)
            connection.connect(address.unix_socket)
        except OSError:
            connection.close()
            raise
        return connection
    connection = socket.create_connection((address.host, address.port), timeout)
    if not address.encrypted:
        return connection
    import ssl  # noqa: PLC0415 - 4 MB that only a hive behind TLS costs

    try:
        return ssl.create_default_context().wrap_socket(connection, server_hostname=address.host)
    except (OSError, ValueError):
        connection.close()
        raise


def _host(address: Address) -> str:
    if address.unix_socket:
        return "localhost"
    name = bracketed(address.host)
    return name if address.port == (443 if address.encrypted else 80) else f"{name}:{address.port}"


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _read_answer(read: Callable[[], bytes]) -> Answer:
    source = _Source(read)
    while True:
        head = source.until(b"\r\n\r\n").split(b"\r\n")
        version, _, rest = head[0].partition(b" ")
        if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
            raise BadAnswer("the answer is not HTTP")
        status = int(rest[:3])
        if status >= 200:  # anything below is an announcement that the answer follows
            break
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in head[1:])}
    if b"chunked" in fields.get(b"transfer-encoding", b"").lower():
        return Answer(status, _chunks(source))
    length = fields.get(b"content-length", b"")
    if length.isdigit():
        if len(length) > _LONGEST_LENGTH:
            raise BadAnswer("the answer is too large")
        return Answer(status, source.exactly(int(length)))
    return Answer(status, b"" if status in (204, 304) else source.everything())


def _chunks(source: "_Source") -> bytes:
    body = bytearray()
    while True:
        size_text = source.until(b"\r\n").partition(b";")[0]
        try:
            size = int(size_text, 16)
        except ValueError:
            raise BadAnswer("the answer has a chunk without a size") from None
        if size == 0:
            return bytes(body)  # trailers, if any, end with the connection
        body += source.exactly(size)
        source.exactly(2)
        if len(body) > MAX_ANSWER_BYTES:
            raise BadAnswer("the answer is too large")


class _Source:
    """Bytes as they arrive, taken off piece by piece."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        self._buffer = bytearray()

    def _more(self) -> bool:
        if len(self._buffer) > MAX_ANSWER_BYTES:
            raise BadAnswer("the answer is too large")
        piece = self._read()
        self._buffer += piece
        return bool(piece)

    def until(self, mark: bytes) -> bytes:
        while (at := self._buffer.find(mark)) < 0:
            if not self._more():
                raise BadAnswer("the connection was closed before the answer was complete")
        taken = bytes(self._buffer[:at])
        del self._buffer[: at + len(mark)]
        return taken

    def exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            if not self._more():
                raise BadAnswer("the connection was closed before the answer was complete")
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def everything(self) -> bytes:
        while self._more():
            pass
        return bytes(self._buffer)
