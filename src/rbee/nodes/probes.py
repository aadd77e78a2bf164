"""Asks a worker's own server one question over one connection. Whoever answers may be a stranger."""

from typing import Final
from urllib.parse import urlsplit

import anyio
import httptools
from anyio.abc import ByteStream

from rbee.core.addresses import bracketed
from rbee.core.launch import Reply

MAX_BODY_BYTES: Final = 2**20
MAX_HEAD_BYTES: Final = 64 * 1024


class HttpProbe:
    """No redirect is followed and no connection kept."""

    async def get(self, url: str, path: str, key: str) -> Reply:
        """GET *path* of the server at *url* (http only), with *key* as its bearer token unless that is empty.

        Raises OSError where nobody listens, and for whatever is not a whole HTTP answer with a body of 1 MiB at most.
        The caller bounds the time.
        """
        try:
            host, port = _address(url)
            head = _request_head(host, port, path, key)
            async with await anyio.connect_tcp(host, port) as stream:
                await stream.send(head)
                return await _read_answer(stream)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise ConnectionResetError(f"the connection to {url} broke") from error
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise OSError(f"what answers at {url} does not speak HTTP as we do: {error}") from error
        except ValueError as error:
            raise OSError(f"{url} cannot be asked: {error}") from error


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError("only http://host:port is")
    return parts.hostname, parts.port or 80


def _request_head(host: str, port: int, path: str, key: str) -> bytes:
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {bracketed(host)}:{port}",
        "Accept: */*",
        "Connection: close",
        *([f"Authorization: Bearer {key}"] if key else []),
    ]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a line break in the path or the key")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


async def _read_answer(stream: ByteStream) -> Reply:
    answer = _Answer()
    while not answer.complete:
        try:
            data = await stream.receive()
        except anyio.EndOfStream:
            answer.ended()
            break
        answer.feed(data)
    return Reply(answer.status, b"".join(answer.parts))


class _Answer:
    """What httptools calls back."""

    def __init__(self) -> None:
        self.status = 0
        self.parts: list[bytes] = []
        self.complete = False
        self._length = 0
        self._head_bytes = 0
        self._framed = False
        self._in_body = False
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Raises OSError beyond a limit, and what the parser raises."""
        if not self._in_body:
            self._head_bytes += len(data)
        self._parser.feed_data(data)
        if not self._in_body and not self.complete and self._head_bytes > MAX_HEAD_BYTES:
            raise OSError(f"the head of the answer is over {MAX_HEAD_BYTES} bytes")
        if self._length > MAX_BODY_BYTES:
            raise OSError(f"the body of the answer is over {MAX_BODY_BYTES} bytes")

    def ended(self) -> None:
        """The connection has ended. Raises OSError where the answer has not."""
        if not self._in_body or self._framed:
            raise ConnectionResetError("the connection ended before the answer did")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._framed = self._framed or name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._in_body = self.status >= 200
        if not self._in_body:
            self._framed = False

    def on_body(self, body: bytes) -> None:
        if self._length <= MAX_BODY_BYTES:
            self.parts.append(body)
        self._length += len(body)

    def on_message_complete(self) -> None:
        # An interim answer (100 Continue) is one, too.
        self.complete = self.complete or self._in_body
