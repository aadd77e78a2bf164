"""One client connection: requests are cut out of its bytes, one at a time and in order, and answers written to it.

Its transport's callbacks are asyncio's, but it needs no loop: time comes in through ``tick``.
"""

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Final

import structlog

from rbee.core.errors import (
    BodyTooLarge,
    BufferFull,
    HeaderTooLarge,
    MalformedRequest,
    RequestError,
    RequestTimeout,
    UnexpectedError,
    status_of,
)
from rbee.gateway import faults, fence, rewrite
from rbee.gateway.chunks import ChunkReader
from rbee.gateway.endpoints import Shape, shape_of
from rbee.gateway.exchange import now
from rbee.gateway.head import RequestHead, is_hopeless, parse_head
from rbee.gateway.likeness import Likeness
from rbee.gateway.patience import Patience
from rbee.gateway.ports import Exchange, Transport

if TYPE_CHECKING:
    from rbee.gateway.door import FrontDoor

log = structlog.get_logger(__name__)

CLIENT_GONE: Final = 499
"""What nginx logs for a client that went away first."""

LINGER: Final = 2.0
"""Seconds in which what a refused client still sends is read and dropped: closing at once would reset the
connection, and the client might never see why (RFC 9112 section 9.6)."""

MIN_BODY_RATE: Final = 16 * 1024
"""Bytes a second that a body must come with after a grace of ``idle_timeout``: a byte now and then would hold it."""

SMALL_PART: Final = 4096
"""Bytes. Pieces of a body are put together up to this size: each one costs 40 bytes beside its own, so that a body
that comes in segments of two would take twenty times what is counted."""

NEVER: Final = float("inf")
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Phase(Enum):
    HEAD = "head"
    BODY = "body"
    BUSY = "busy"
    """A request is under way. What comes meanwhile waits in the buffer."""
    LINGER = "linger"
    CLOSED = "closed"


Callback = Callable[["ClientConnection"], None]


class ClientConnection:
    """``joined`` and ``left`` are told when there is a connection, and when it is gone."""

    def __init__(self, door: "FrontDoor", joined: "Callback", left: "Callback") -> None:
        self._door = door
        self._joined = joined
        self._left = left
        self._phase = Phase.HEAD
        self._buffer = b""
        self._scanned = 0
        self._deadline = NEVER
        self._advancing = False
        self._reading_paused = self._writing_paused = False
        self._patience: Patience | None = None
        self._leaving = False
        self.origin: bytes | None = None
        self._usual: RequestHead | None = None
        self._likeness: Likeness | None = None
        self._clear()

    def _clear(self) -> None:
        """Forget the last request."""
        self._head: RequestHead | None = None
        self._exchange: Exchange | None = None
        self._request_id = ""
        self._blank = False
        self._chunks: ChunkReader | None = None
        self._parts: list[bytes] = []
        self._missing = 0
        self._held = 0
        self._body_since = 0.0
        self._close = False
        self._pending = b""
        self._chunked_answer = self._bodyless = self._answering = False

    def idle_for(self, now: float) -> float:
        """Seconds since it last asked for anything, or connected; 0 while it asks."""
        is_idle = self._phase is Phase.HEAD and not self._buffer
        return now - self._deadline + self._door.options.idle_timeout if is_idle else 0.0

    def turn_away(self, error: RequestError) -> None:
        """Answer with *error* whatever it is about to ask, and end."""
        self._close = True
        self.refuse(error)

    # asyncio's callbacks

    def connection_made(self, transport: Transport) -> None:
        self._transport = transport
        self._deadline = now() + self._door.options.idle_timeout
        self._joined(self)

    def data_received(self, data: bytes) -> None:
        if self._phase in (Phase.LINGER, Phase.CLOSED):
            return
        if not self._buffer and self._phase is Phase.HEAD:
            self._deadline = now() + self._door.options.header_timeout
        if self._likeness is not None and self._phase is Phase.HEAD and not self._buffer and self._take_usual(data):
            return
        self._buffer = self._buffer + data if self._buffer else data
        self._advance()

    def pause_writing(self) -> None:
        self._writing_paused = True
        self._patience = Patience(self._transport, now())
        if self._exchange is not None:
            self._exchange.client_paused()

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._patience = None
        if self._phase is Phase.HEAD:
            self._await_head()
        if self._exchange is not None:
            self._exchange.client_resumed()
        self._advance()

    def eof_received(self) -> bool:
        """A client that sends no more counts as gone, as for nginx: half closed and dead look the same."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._phase = Phase.CLOSED
        try:
            self._drop_exchange(CLIENT_GONE)
        except Exception:  # whatever it is, the connection and its bytes are gone
            log.exception("request_broken", request_id=self._request_id)
        finally:
            self.drop_body()
            self._left(self)

    def _drop_exchange(self, status: int) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.drop(status)

    def broken(self) -> None:
        log.exception("request_broken", request_id=self._request_id)
        try:
            self._drop_exchange(500)
            if self._answering or self._phase in (Phase.LINGER, Phase.CLOSED):
                self.abort()
            else:
                self._close = True
                self.refuse(UnexpectedError("Something went wrong here that should not. It is in the log."))
        except Exception:  # nothing is left but to end it
            log.exception("connection_broken", request_id=self._request_id)
            self.drop_body()
            self.abort()

    # reading requests

    def _advance(self) -> None:
        """Take as many requests out of the buffer as can be answered now."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while not self._writing_paused and self._step():
                pass
        except Exception:  # a callback has no caller who would end the connection
            self.broken()
        finally:
            self._advancing = False
        self._pace()

    def _step(self) -> bool:
        """Whether something was taken out of the buffer and there may be more."""
        try:
            if self._phase is Phase.HEAD:
                return bool(self._buffer) and self._read_head()
            if self._phase is Phase.BODY:
                return self._read_body()
        except (MalformedRequest, HeaderTooLarge, BodyTooLarge, BufferFull) as error:
            # Nothing that comes after this one can be trusted.
            self._close = True
            self.refuse(error)
        except RequestError as error:
            self.refuse(error)
            return True
        return False

    def _pace(self) -> None:
        """Read no further ahead than one head: who sends faster waits."""
        full = self._phase is not Phase.LINGER and len(self._buffer) > self._door.options.max_header
        if full is not self._reading_paused and not self._transport.is_closing():
            self._reading_paused = full
            (self._transport.pause_reading if full else self._transport.resume_reading)()

    def _take_usual(self, data: bytes) -> bool:
        """Take *data* for a whole request whose head is the last one's but for its length; False for anything else.

        All that was decided on that head holds. What is refused goes the long way, and is refused there.
        """
        assert self._likeness is not None
        assert self._usual is not None
        found = self._likeness.read(data)
        if found is None or self._writing_paused or self._leaving:
            return False
        length, end = found
        door, head = self._door, self._usual
        if end + length != len(data) or length > door.options.max_body or door.closing or not door.buffer.take(length):
            return False
        head.length, self._held = length, length
        self._head = head
        self._request_id = rewrite.request_id(head.fields.get(b"x-request-id"))
        self._phase = Phase.BUSY
        self._deadline = NEVER
        try:
            self._exchange = door.admit_again(head, self, self._request_id)
            self._exchange.start(data[end:])
        except Exception:  # a callback has no caller who would end the connection
            self.broken()
        return True

    def _read_head(self) -> bool:
        if not self._blank and self._buffer.startswith(b"\r\n"):
            self._buffer = self._buffer[2:]
            self._blank = True
        limit = self._door.options.max_header
        # A head that comes byte by byte is looked through once, not once a byte.
        start = max(0, self._scanned - 3)
        end = self._buffer.find(b"\r\n\r\n", start, limit)
        if end < 0:
            if is_hopeless(self._buffer, start, limit):
                raise MalformedRequest("The request is not HTTP/1.1.")
            if len(self._buffer) >= limit:
                raise HeaderTooLarge(f"The header is larger than {limit} bytes (gateway.max_header).")
            self._scanned = len(self._buffer)
            return False
        raw, self._buffer = self._buffer[: end + 4], self._buffer[end + 4 :]
        self._likeness = self._usual = None
        head = parse_head(raw)
        self._begin_body(head)
        self._exchange = self._door.admit(head, self, self._request_id)
        self._door.check_size(head, head.length)
        # An origin was judged with its head, but stands on the connection: such a head is read anew each time. One
        # without a body was let in whatever its content type is.
        usual = head.has_body and head.keep_alive and not head.expects_continue
        if usual and head.principal is not None and self.origin is None:
            self._likeness = Likeness.of(raw)
            self._usual = head if self._likeness is not None else None
        if head.expects_continue and head.has_body and not self._buffer:
            self._transport.write(_CONTINUE)
        return True

    def _begin_body(self, head: RequestHead) -> None:
        self._scanned = 0
        self._head = head
        self._request_id = rewrite.request_id(head.fields.get(b"x-request-id"))
        self._close = self._leaving or not head.keep_alive
        self._missing = head.length
        self._chunks = ChunkReader() if head.chunked else None
        self._phase = Phase.BODY
        self._body_since = now()

    def _read_body(self) -> bool:
        if self._chunks is not None:
            self._hold(self._chunks.feed(self._buffer))
            self._buffer = self._chunks.rest if self._chunks.done else b""
            complete = self._chunks.done
        elif self._missing:
            part, self._buffer = self._buffer[: self._missing], self._buffer[self._missing :]
            self._hold(part)
            self._missing -= len(part)
            complete = not self._missing
        else:
            complete = True
        if not complete:
            idle_timeout = self._door.options.idle_timeout
            self._deadline = idle_timeout + min(now(), self._body_since + self._held / MIN_BODY_RATE)
            return False
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        self._phase = Phase.BUSY
        self._deadline = NEVER
        assert self._exchange is not None
        self._exchange.start(body)
        return True

    def _hold(self, part: bytes) -> None:
        if not part:
            return
        if not self._door.buffer.take(len(part)):
            raise self._door.buffer.full("Try later.")
        self._held += len(part)
        assert self._head is not None
        self._door.check_size(self._head, self._held)
        if self._parts and len(self._parts[-1]) + len(part) < SMALL_PART:
            self._parts[-1] += part
        else:
            self._parts.append(part)

    def drop_body(self) -> None:
        held, self._held = self._held, 0
        self._door.buffer.give(held)
        self._parts = []

    # writing answers

    def begin(self, status: int, lines: bytes, length: int | None) -> None:
        head = self._head
        self._bodyless = head is not None and head.method == b"HEAD"
        self._chunked_answer = False
        framing = b""
        if length is not None:
            if status not in (204, 304):
                framing = b"content-length: %d\r\n" % length
        elif not self._bodyless:
            self._chunked_answer = head is None or head.minor == 1
            if self._chunked_answer:
                framing = b"transfer-encoding: chunked\r\n"
            else:
                self._close = True
        if self.origin is not None:
            framing += fence.origin_lines(self.origin)
        elif self._door.options.cors_origins:
            framing += fence.VARY
        if self._close:
            framing += b"connection: close\r\n"
        elif head is not None and head.minor == 0:
            framing += b"connection: keep-alive\r\n"
        own = (rewrite.status_line(status), lines, framing, self._request_id.encode("ascii"))
        self._pending = b"%b%b%bx-request-id: %b\r\n\r\n" % own

    def send(self, data: bytes, *, done: bool = False) -> None:
        out, self._pending = self._pending, b""
        if self._bodyless:
            data = b""
        if self._chunked_answer:
            if data:
                out += b"%x\r\n%b\r\n" % (len(data), data)
            if done:
                out += b"0\r\n\r\n"
        else:
            out += data
        if out and not self._transport.is_closing():
            self._answering = True
            self._transport.write(out)
        if done:
            self._finish()

    def send_chunk(self, framed: bytes, start: int) -> None:
        if self._chunked_answer and not self._pending:
            if not self._transport.is_closing():
                self._answering = True
                self._transport.write(framed)
        else:
            self.send(framed[start:-2])

    def close_after(self) -> None:
        self._close = True

    def abort(self) -> None:
        self._transport.abort()

    def refuse(self, error: RequestError) -> None:
        """Answer with an error; if some of the request is still to come, the connection ends with it."""
        self._exchange = None
        self.drop_body()
        if not self._request_id:
            self._request_id = rewrite.request_id(None)
        unread = self._phase is Phase.HEAD or (self._phase is Phase.BODY and not self._skip_body())
        self._close = self._close or unread
        shape = shape_of(self._head.path) if self._head is not None else Shape.PLAIN
        body = faults.body(error, shape, self._request_id)
        self.begin(status_of(error), rewrite.lines_of(faults.fields(error)), len(body))
        self.send(body)
        if unread:
            self._linger()
        else:
            self._finish()

    def _skip_body(self) -> bool:
        """Whether the refused request's body is here already, so that it can be left out and the next one read."""
        if self._chunks is not None or len(self._buffer) < self._missing:
            return False
        self._buffer = self._buffer[self._missing :]
        return True

    def _linger(self) -> None:
        self._phase = Phase.LINGER
        self._buffer = b""
        self._deadline = now() + LINGER
        if not self._transport.is_closing() and self._transport.can_write_eof():
            self._transport.write_eof()

    def _finish(self) -> None:
        """The answer is complete."""
        self.drop_body()
        if self._close or self._leaving:
            self._shut()
            return
        self._clear()
        self.origin = None
        self._phase = Phase.HEAD
        self._await_head()
        if self._buffer:
            self._advance()

    def _await_head(self) -> None:
        options = self._door.options
        self._deadline = now() + (options.header_timeout if self._buffer else options.idle_timeout)

    def _shut(self) -> None:
        """Close, and soon abort: a peer that does not read what is left to write would keep us for ever."""
        self._phase = Phase.CLOSED
        self._exchange = None
        self._deadline = now() + self._door.options.idle_timeout
        self._transport.close()

    # time, and the end

    def tick(self, now: float) -> None:
        try:
            self._tick(now)
        except Exception:  # one connection's error must not cost the others their time
            self.broken()

    def _tick(self, now: float) -> None:
        if self._exchange is not None and self._phase is Phase.BUSY:
            self._exchange.tick(now)
        if self._patience is not None and self._patience.seconds(now) >= self._door.options.idle_timeout:
            self.abort()
            return
        if now < self._deadline or (self._writing_paused and self._phase is Phase.HEAD):
            # A client that has not taken its answers is not late with its next request: that one may be here already.
            return
        self._deadline = NEVER
        if self._phase is Phase.LINGER or (self._phase is Phase.HEAD and not self._buffer):
            self._shut()
        elif self._phase is Phase.CLOSED:
            self._transport.abort()
        else:
            self._close = True
            part = "header" if self._phase is Phase.HEAD else "body"
            self.refuse(RequestTimeout(f"The {part} of the request took too long to arrive."))

    def leave(self) -> None:
        """End as soon as the request under way, if any, is answered."""
        self._leaving = True
        if self._phase is Phase.HEAD and not self._buffer:
            self._shut()
