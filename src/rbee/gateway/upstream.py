"""Connections to upstreams: workers over TCP, the control API over its Unix socket.

A connection serves one request at a time. Everything is callbacks; a task lives only while one connects.
"""

import asyncio
import re
from time import perf_counter
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, cast

import httptools

from rbee.gateway.likeness import Likeness
from rbee.gateway.rewrite import from_upstream

if TYPE_CHECKING:
    from rbee.gateway.pool import Pool

Address = str | tuple[str, int]
"""A Unix socket's path, or host and port."""

CONNECT_TIMEOUT: Final = 5.0
MAX_ANSWER_HEAD: Final = 256 * 1024
"""Bytes that may come before an answer's head is complete, interim answers (1xx) included; and bytes that may come in
a row after it without one of the body (extensions and trailers of chunks)."""


class Request(NamedTuple):
    """A request as it goes over the wire."""

    head: bytes
    body: bytes
    is_head: bool = False


_match_size: Final = re.compile(rb"[0-9A-Fa-f]{1,8}\r\n").match


class AnswerHead:
    """``length`` is the body's length in bytes (None where only its end tells), ``size`` that of the header lines.

    ``fields`` are all its headers, ``lines`` those that the client gets. One object may come with many answers that
    differ in their length alone.
    """

    __slots__ = ("fields", "is_stream", "length", "lines", "size", "status")

    def __init__(self, status: int, fields: list[tuple[bytes, bytes]], length: int | None) -> None:
        self.status = status
        self.fields = fields
        self.length = length
        self.lines = from_upstream(fields)
        self.size = sum(len(name) + len(value) + 4 for name, value in fields)
        kind = next((value for name, value in fields if name.lower() == b"content-type"), b"")
        self.is_stream = kind.startswith(b"text/event-stream")


def whole_chunk(data: bytes) -> int:
    """Where the content begins if *data* is exactly one chunk of a chunked body, and not the last; else 0."""
    found = _match_size(data)
    if found is None:
        return 0
    start = found.end()
    size = int(found[0], 16)
    return start if size and start + size + 2 == len(data) and data.endswith(b"\r\n") else 0


class Asker(Protocol):
    """Who wants an answer. After ``lost``, or ``answered`` with *done*, it hears no more."""

    def answered(self, head: AnswerHead | None, data: bytes, done: bool) -> None:
        """More of the answer; *head* comes once and first."""

    def chunk(self, framed: bytes, start: int) -> None:
        """More of an answer that has begun: one chunk as it came, its content from *start* to 2 before its end."""

    def lost(self, reason: str, stale: bool) -> None:
        """There will be no (more) answer. *stale*: a kept connection that had ended before it was used."""

    def broken(self) -> None:
        """One of the two has raised what nobody expects (told in the ``except``): end, whatever state it is in."""


class Upstream(asyncio.Protocol):
    """One connection. ``heard_at`` is when its last byte came (seconds, performance counter)."""

    def __init__(self, pool: "Pool", address: Address) -> None:
        self.address = address
        self.idle_since = 0.0
        self.heard_at = 0.0
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._written_at = 0.0
        self._connecting: asyncio.Task[None] | None = None
        self._asker: Asker | None = None
        self._paused = False
        self._reused = False
        self._parting = False
        self._parser = httptools.HttpResponseParser(self)
        self._likeness: Likeness | None = None
        self._usual: AnswerHead | None = None

    def ask(self, request: Request, asker: Asker) -> None:
        """Send *request*; *asker* gets the answer."""
        self._request: Request | None = request
        self._asker = asker
        self._is_head_request = request.is_head
        self._heard = self._begun = self._done = self._interim = self._until_end = self._keep = False
        self._chunked = self._at_chunk = self._between_chunks = False
        self._fields: list[tuple[bytes, bytes]] = []
        self._framing_bytes = 0
        self._head: AnswerHead | None = None
        self._parts: list[bytes] = []
        self.heard_at = perf_counter()
        if self._transport is not None:
            self._reused = True
            self._write()
        else:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())

    def abandon(self) -> None:
        """Nobody wants the answer: end the connection at once, so that the upstream stops working on it."""
        self._asker = None
        self._end()

    def part_soon(self) -> None:
        """The worker is gone: read what it has left, however slow the client is, then end."""
        if not self._parting:
            self._parting = True
            self.resume()
            asyncio.get_running_loop().call_later(self._pool.gone_grace, self._lose, "its worker is gone")

    def pause(self) -> None:
        if self._parting:
            return
        self._paused = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        self._paused = False
        # The silence until now was the client's, not the upstream's.
        self.heard_at = perf_counter()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    @property
    def paused(self) -> bool:
        return self._paused

    def _end(self) -> None:
        self._pool.forget(self)
        if self._transport is not None:
            self._transport.abort()
        elif self._connecting is not None:
            self._connecting.cancel()

    def _lose(self, reason: str) -> None:
        asker, self._asker = self._asker, None
        self._end()
        if asker is not None:
            self._tell_lost(asker, reason)

    def _tell(self, asker: Asker, head: AnswerHead | None, data: bytes, *, done: bool) -> None:
        try:
            asker.answered(head, data, done)
        except Exception:  # a callback has no caller who would end the request
            asker.broken()

    def _tell_lost(self, asker: Asker, reason: str) -> None:
        try:
            asker.lost(reason, self._reused and not self._heard and self._ended_at_once())
        except Exception:  # as above
            asker.broken()

    def _ended_at_once(self) -> bool:
        return perf_counter() - self._written_at < self._pool.stale_limit

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                if isinstance(self.address, str):
                    await loop.create_unix_connection(lambda: self, self.address)
                else:
                    await loop.create_connection(lambda: self, *self.address)
        except (OSError, ValueError) as error:
            # ValueError: an address that is none, such as a name that IDNA cannot encode.
            self._lose(f"no connection: {getattr(error, 'strerror', None) or type(error).__name__}")

    def _write(self) -> None:
        assert self._transport is not None
        assert self._request is not None
        request, self._request = self._request, None
        self._written_at = perf_counter()
        # Small bodies travel with their head in one segment; large ones are not copied for that.
        if len(request.body) <= 65536:
            self._transport.write(request.head + request.body)
        else:
            self._transport.writelines((request.head, request.body))

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._asker is None:
            self._transport.abort()
            return
        if self._paused:
            self._transport.pause_reading()
        self._write()

    def data_received(self, data: bytes) -> None:
        asker = self._asker
        if asker is None:
            self._end()
            return
        self.heard_at = perf_counter()
        if self._between_chunks:
            # The parser stands before a chunk; one that is whole passes beside it, and leaves it there.
            start = whole_chunk(data)
            if start:
                try:
                    asker.chunk(data, start)
                except Exception:  # a callback has no caller who would end the request
                    asker.broken()
                return
        elif self._likeness is not None and not self._heard and self._take_usual(asker, data):
            return
        self._heard = True
        self._parse(data)

    def _take_usual(self, asker: Asker, data: bytes) -> bool:
        """Take *data* for a whole answer whose head is the last one's but for its length; False for anything else."""
        assert self._likeness is not None
        assert self._usual is not None
        found = self._likeness.read(data)
        if found is None or found[0] + found[1] != len(data) or self._is_head_request:
            return False
        head, self._asker = self._usual, None
        head.length = found[0]
        self._keep = True
        self._part()
        self._tell(asker, head, data[found[1] :], done=True)
        return True

    def _parse(self, data: bytes) -> None:
        is_first = not self._begun and not self._framing_bytes
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._keep = False
            if not self._done:
                self._lose(f"its answer is not HTTP/1.1: {error}")
                return
        if self._parts:
            self._framing_bytes = 0
        elif not self._done:
            # The parser keeps a header until its line ends: one that never does must be counted here.
            self._framing_bytes += len(data)
            if self._framing_bytes > MAX_ANSWER_HEAD:
                self._lose("the head or the framing of its answer has no end")
                return
        if is_first and self._keep and not self._is_head_request and self._head is not None:
            self._remember(self._head, data)
        self._between_chunks = self._at_chunk and data.endswith(b"\r\n")
        self._deliver()

    def _remember(self, head: AnswerHead, data: bytes) -> None:
        """Keep what the head of an answer says that came whole: the next one on this connection will be alike."""
        end = data.find(b"\r\n\r\n") + 4
        # The parser takes some line ends that we do not look for: its head must have ended where we believe.
        if data.startswith(b"HTTP/1.1 200 ") and head.length is not None and end + head.length == len(data):
            self._likeness = Likeness.of(data[:end])
            self._usual = head if self._likeness is not None else None

    def _deliver(self) -> None:
        head, self._head = self._head, None
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        if self._parts:
            self._parts = []
        asker = self._asker
        assert asker is not None
        if self._done:
            self._asker = None
            self._part()
        if head is not None or data or self._done:
            self._tell(asker, head, data, done=self._done)

    def _part(self) -> None:
        """The answer is complete: keep the connection for the next request, or end it."""
        assert self._transport is not None
        if self._paused:
            self.resume()
        if (
            self._keep
            and not self._parting
            and not self._transport.is_closing()
            and not self._transport.get_write_buffer_size()
        ):
            self._pool.keep(self)
        else:
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)
        asker, self._asker = self._asker, None
        if asker is None:
            return
        if self._until_end and exc is None:
            self._tell(asker, None, b"", done=True)
        else:
            self._tell_lost(asker, "the connection ended" if exc is None else str(exc))

    # httptools' callbacks

    def on_message_begin(self) -> None:
        if self._done:
            self._keep = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._begun:
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        if self._done:
            return
        status = self._parser.get_status_code()
        if not 100 <= status <= 599 or self._parser.get_http_version() not in ("1.1", "1.0"):
            raise ValueError("unknown status or version")
        if status < 200:
            self._interim = True
            self._fields = []
            return
        head = AnswerHead(status, self._fields, self._body_length(status))
        self._head = head
        self._begun = True
        if self._is_head_request:
            # The parser waits for a body that a HEAD answer does not have.
            self._keep = self._parser.should_keep_alive() and not self._until_end
            self._done = True
            self._parser = httptools.HttpResponseParser(self)

    def _body_length(self, status: int) -> int | None:
        lengths = [value for name, value in self._fields if name.lower() == b"content-length"]
        codings = [value.strip().lower() for name, value in self._fields if name.lower() == b"transfer-encoding"]
        if codings and (codings != [b"chunked"] or lengths or self._parser.get_http_version() == "1.0"):
            raise ValueError("unknown framing")
        self._chunked = self._at_chunk = bool(codings) and not self._is_head_request and status not in (204, 304)
        if status in (204, 304):
            return 0
        if lengths:
            return int(lengths[0])
        self._until_end = not codings and not self._is_head_request
        return None

    def on_body(self, body: bytes) -> None:
        if not self._done:
            self._parts.append(body)
        else:
            # A body after a HEAD answer: what comes next may be more of it.
            self._keep = False

    def on_chunk_header(self) -> None:
        self._at_chunk = False

    def on_chunk_complete(self) -> None:
        self._at_chunk = self._chunked

    def on_message_complete(self) -> None:
        self._chunked = self._at_chunk = False
        if self._interim:
            self._interim = False
        elif not self._done:
            self._keep = self._parser.should_keep_alive()
            self._done = True
