"""A small HTTP/1.1 server on one selector. Not asyncio: that is 11 MB a process, and tests start 200 of them."""

import heapq
import json
import selectors
import socket
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

MAX_HEADER_BYTES: Final = 65_536
MAX_BODY_BYTES: Final = 64 << 20
REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    413: "Content Too Large",
    503: "Service Unavailable",
}


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Timer:
    """A call to be made at *at* (monotonic seconds), unless cancelled before."""

    __slots__ = ("at", "call")

    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at = at
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None

    def __lt__(self, other: "Timer") -> bool:
        return self.at < other.at


class Loop:
    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self._timers: list[Timer] = []

    def at(self, when: float, call: Callable[[], None]) -> Timer:
        timer = Timer(when, call)
        heapq.heappush(self._timers, timer)
        return timer

    def run(self) -> None:
        while True:
            self._run_timers()
            timeout = max(0.0, self._timers[0].at - time.monotonic()) if self._timers else None
            for key, events in self.selector.select(timeout):
                key.data(events)

    def _run_timers(self) -> None:
        """Make the calls that are due now; what they add waits for the next round, so that sockets get their turn."""
        now = time.monotonic()
        due: list[Timer] = []
        while self._timers and self._timers[0].at <= now:
            due.append(heapq.heappop(self._timers))
        for timer in due:
            if timer.call is not None:
                timer.call()


Handler = Callable[["Connection", Request], None]


def listen(loop: Loop, host: str, port: int, handler: Handler) -> None:
    """Serve on *host* and *port*. Raises OSError when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = socket.socket(family)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((host, port))
    server.listen(1024)
    server.setblocking(False)

    def accept(_: int) -> None:
        try:
            client, _address = server.accept()
        except OSError:
            return
        Connection(loop, client, handler)

    loop.selector.register(server, selectors.EVENT_READ, accept)


class Connection:
    """One client. A request is handled when the one before it is answered; a client that is gone is told to
    ``on_gone``."""

    def __init__(self, loop: Loop, client: socket.socket, handler: Handler) -> None:
        self.on_gone: Callable[[], None] | None = None
        self._loop = loop
        self._socket = client
        self._handler = handler
        self._in = bytearray()
        self._out = bytearray()
        self._busy = False
        self._handling = False
        self._closing = False
        self._open = True
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop.selector.register(client, selectors.EVENT_READ, self._happened)

    @property
    def backlog(self) -> int:
        """Bytes that the client has not taken yet."""
        return len(self._out)

    def answer(self, status: int, content: Any, content_type: str = "application/json; charset=utf-8") -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self._write(_head(status, content_type, f"Content-Length: {len(body)}") + body)
        self._finished()

    def start_events(self) -> None:
        self._write(_head(200, "text/event-stream", "Transfer-Encoding: chunked"))

    def send_event(self, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        self._write(b"%x\r\n%b\r\n" % (len(event), event))

    def end_events(self) -> None:
        self._write(b"0\r\n\r\n")
        self._finished()

    def _finished(self) -> None:
        self._busy = False
        self.on_gone = None
        if self._closing and not self._out:
            self._close()
        self._handle_next()

    def _happened(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush()
        if self._open and events & selectors.EVENT_READ:
            self._receive()

    def _receive(self) -> None:
        try:
            piece = self._socket.recv(262_144)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece or len(self._in) > MAX_HEADER_BYTES + MAX_BODY_BYTES:
            self._close()
            return
        self._in += piece
        self._handle_next()

    def _handle_next(self) -> None:
        """Handle what has come, up to the first request whose answer is not there yet."""
        if self._handling:
            return  # the loop below goes on: a client may send any number of requests at once
        self._handling = True
        while not (self._busy or self._closing) and self._open and self._handle_one():
            pass
        self._handling = False

    def _handle_one(self) -> bool:
        """Whether a request was there."""
        try:
            request = take_request(self._in)
        except ValueError as error:
            self._closing = self._busy = True
            self.answer(400, {"error": {"code": 400, "message": str(error), "type": "invalid_request_error"}})
            return True
        if request is not None:
            self._busy = True
            self._closing = request.headers.get("connection", "").lower() == "close"
            self._handler(self, request)
        elif self._in.find(b"100-continue") > 0 and not self._out:
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return request is not None

    def _write(self, data: bytes) -> None:
        if self._open:
            self._out += data
            self._flush()

    def _flush(self) -> None:
        try:
            while self._out:
                del self._out[: self._socket.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self._close()
            return
        if not self._out and self._closing and not self._busy:
            self._close()
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0)
        if self._loop.selector.get_key(self._socket).events != wanted:
            self._loop.selector.modify(self._socket, wanted, self._happened)

    def _close(self) -> None:
        if not self._open:
            return
        self._open = False
        self._loop.selector.unregister(self._socket)
        self._socket.close()
        gone, self.on_gone = self.on_gone, None
        if gone is not None:
            gone()


def take_request(buffer: bytearray) -> Request | None:
    """Take the first whole request off *buffer*; None while it is incomplete. Raises ValueError if it is not HTTP."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        if len(buffer) > MAX_HEADER_BYTES:
            raise ValueError("the header is too large")
        return None
    lines = buffer[:end].decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise ValueError("the request line is not HTTP/1.1")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    start = end + 4
    if "chunked" in headers.get("transfer-encoding", "").lower():
        taken = _chunked_body(buffer, start)
        if taken is None:
            return None
        body, stop = taken
    else:
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            raise ValueError("the content length is not usable")
        stop = start + int(length)
        if len(buffer) < stop:
            return None
        body = bytes(buffer[start:stop])
    del buffer[:stop]
    return Request(words[0], words[1].partition("?")[0], headers, body)


def _chunked_body(buffer: bytearray, start: int) -> tuple[bytes, int] | None:
    """The body, and where it ends in *buffer*; None while it is incomplete."""
    body = bytearray()
    while True:
        line_end = buffer.find(b"\r\n", start)
        if line_end < 0:
            return None
        size = int(bytes(buffer[start:line_end]).partition(b";")[0], 16)
        start = line_end + 2
        if len(buffer) < start + size + 2:
            return None
        body += buffer[start : start + size]
        start += size + 2
        if size == 0:
            return bytes(body), start


def _head(status: int, content_type: str, framing: str) -> bytes:
    reason = REASONS.get(status, "Error")
    return f"HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\n{framing}\r\n\r\n".encode()
