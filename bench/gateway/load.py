"""The one client of all proxies: as many requests, or as many streams, as a plan says, from a process of its own.

Times are seconds of the performance counter, which all processes of a machine share.
"""

import asyncio
import ctypes
import os
import struct
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final, cast

import httptools
import uvloop

from bench.gateway import payloads

PATIENCE: Final = 60.0
"""Seconds beyond its planned end after which a run is a failure."""


@dataclass(frozen=True)
class Closed:
    """*connections* clients that ask again as soon as they are answered, until *requests* were sent."""

    port: int
    requests: int
    connections: int = 32


@dataclass(frozen=True)
class Open:
    """*rate* requests a second for *seconds*, whatever becomes of those before.

    One that finds all *connections* busy goes out late, and its time counts from when it was due.
    """

    port: int
    rate: float
    seconds: float
    connections: int = 128


@dataclass(frozen=True)
class Streams:
    """*streams* that start evenly spread over *spread* seconds, each of *chunks* chunks *interval_ms* apart.

    All are left where they are after *limit* seconds. *together*: the chunks of all of them come at the same moments.
    """

    port: int
    streams: int
    chunks: int
    interval_ms: int
    spread: float
    limit: float
    together: bool = False


@dataclass
class Result:
    """What came of a plan. ``at`` and ``took`` go together: when something came, and how long it took.

    That is the first byte since the request was due, or, of streams, each piece since the one before it.
    """

    asked: int = 0
    answered: int = 0
    events: int = 0
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0
    at: array = field(default_factory=lambda: array("d"))
    took: array = field(default_factory=lambda: array("d"))

    def check(self) -> "Result":
        """Raise RuntimeError unless every request was answered as it should be."""
        if self.errors or self.answered != self.asked:
            raise RuntimeError(f"{self.answered} of {self.asked} answered; {self.errors[:3]}")
        return self


Plan = Closed | Open | Streams


def run(plan: Plan) -> Result:
    """Carry *plan* out. For a process of its own."""
    return uvloop.run(_run(plan))


async def _run(plan: Plan) -> Result:
    loop, result = asyncio.get_running_loop(), Result()
    begin = perf_counter()
    match plan:
        case Closed():
            await _closed(loop, plan, result)
        case Open():
            await _open(loop, plan, result)
        case Streams():
            await _streams(loop, plan, result)
    result.seconds = perf_counter() - begin
    return result


class _Asking(asyncio.Protocol):
    """A connection that is asked and answered in turn; *then* is called with it after each answer."""

    def __init__(self, result: Result, then: "Callable[[_Asking], None]") -> None:
        self._result = result
        self._then = then
        self._due = 0.0
        self._busy = False
        self._data, self._end = b"", 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes, due: float) -> None:
        self._busy, self._due = True, due
        self._data, self._end = b"", 0
        self._result.asked += 1
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._due:
            now = perf_counter()
            self._result.at.append(now)
            self._result.took.append(now - self._due)
            self._due = 0.0
        data = self._data = self._data + data if self._data else data
        if not self._end:
            self._measure(data)
        if len(data) < self._end or (self._end <= 0 and not data.endswith(b"\r\n0\r\n\r\n")):
            return
        self._busy = False
        if data.startswith(b"HTTP/1.1 200"):
            self._result.answered += 1
        else:
            self._result.errors.append(repr(data[:300]))
        self._then(self)

    def _measure(self, data: bytes) -> None:
        """Where the answer ends: a place, -1 where only the end of its last chunk tells, 0 while that is unknown."""
        end = data.find(b"\r\n\r\n") + 4
        if end == 3:
            return
        head = data[:end].lower()
        start = head.find(b"content-length:")
        self._end = -1 if start < 0 else end + int(head[start + 15 : head.index(b"\r\n", start)])

    def connection_lost(self, error: Exception | None) -> None:
        if self._busy:
            self._result.errors.append(f"lost: {error!r}")
            self._then(self)


async def _connect(loop: asyncio.AbstractEventLoop, port: int, make: Callable[[], _Asking]) -> _Asking:
    _, protocol = await loop.create_connection(make, "127.0.0.1", port)
    return protocol


async def _closed(loop: asyncio.AbstractEventLoop, plan: Closed, result: Result) -> None:
    bodies = payloads.requests(plan.port)
    ended, left = asyncio.Event(), plan.connections

    def then(client: _Asking) -> None:
        nonlocal left
        if result.asked < plan.requests and not client.transport.is_closing():
            client.ask(bodies[result.asked % len(bodies)], perf_counter())
            return
        left -= 1
        if not left:
            ended.set()

    clients = [await _connect(loop, plan.port, lambda: _Asking(result, then)) for _ in range(plan.connections)]
    for client in clients:
        client.ask(bodies[result.asked % len(bodies)], perf_counter())
    async with asyncio.timeout(PATIENCE):
        await ended.wait()
    for client in clients:
        client.transport.abort()


async def _open(loop: asyncio.AbstractEventLoop, plan: Open, result: Result) -> None:
    """The kernel's timer wakes for each request: those of the loop step by a millisecond."""
    bodies = payloads.requests(plan.port)
    total, sent, ended = int(plan.rate * plan.seconds), 0, asyncio.Event()
    overdue: deque[float] = deque()

    def then(client: _Asking) -> None:
        if overdue:
            client.ask(bodies[result.asked % len(bodies)], overdue.popleft())
            return
        idle.append(client)
        if sent == total and len(idle) == plan.connections:
            ended.set()

    def wake() -> None:
        nonlocal sent
        os.read(timer, 8)
        now = perf_counter()
        while sent < total and (due := start + sent / plan.rate) <= now:
            sent += 1
            if idle:
                idle.pop().ask(bodies[result.asked % len(bodies)], due)
            else:
                overdue.append(due)

    idle = [await _connect(loop, plan.port, lambda: _Asking(result, then)) for _ in range(plan.connections)]
    clients = list(idle)
    timer = _kernel_timer(1 / plan.rate)
    start = perf_counter()
    loop.add_reader(timer, wake)
    try:
        async with asyncio.timeout(plan.seconds + PATIENCE):
            await ended.wait()
    finally:
        loop.remove_reader(timer)
        os.close(timer)
    for client in clients:
        client.transport.abort()


def _kernel_timer(interval: float) -> int:
    """A descriptor that becomes readable every *interval* seconds (timerfd_create(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    monotonic, nonblocking = 1, os.O_NONBLOCK
    timer = int(libc.timerfd_create(monotonic, nonblocking))
    step = int(interval * 1e9)
    spec = struct.pack("4q", step // 10**9, step % 10**9, step // 10**9, step % 10**9)
    if timer < 0 or libc.timerfd_settime(timer, 0, spec, None):
        raise OSError(ctypes.get_errno(), "timerfd")
    return timer


class _Listening(asyncio.Protocol):
    """One stream, read to its end."""

    def __init__(self, result: Result, request: bytes, ended: Callable[[], None]) -> None:
        self._result = result
        self._request = request
        self._ended: Callable[[], None] | None = ended
        self._parser = httptools.HttpResponseParser(self)
        self._last = 0.0
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._result.asked += 1
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = perf_counter()
        if self._last:
            self._result.at.append(now)
            self._result.took.append(now - self._last)
        self._last = now
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        # A proxy may cut between the two line ends of an event.
        split = self._tail == b"\n" and data.startswith(b"\n")
        self._result.events += data.count(b"\n\n") + split
        self._tail = data[-1:] if not data.endswith(b"\n\n") else b""

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() == 200:
            self._result.answered += 1
        else:
            self._result.errors.append(f"status {self._parser.get_status_code()}")
        self._end()

    def connection_lost(self, error: Exception | None) -> None:
        if self._ended is not None:
            self._result.errors.append(f"lost: {error!r}")
            self._end()

    def _end(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()
        self.transport.abort()

    def leave(self) -> None:
        self._ended = None
        self.transport.abort()


async def _streams(loop: asyncio.AbstractEventLoop, plan: Streams, result: Result) -> None:
    bodies = payloads.requests(plan.port, plan.chunks, plan.interval_ms, together=plan.together)
    left, over = plan.streams, asyncio.Event()
    open_ones: list[_Listening] = []

    def ended() -> None:
        nonlocal left
        left -= 1
        if not left:
            over.set()

    async def listen(number: int) -> None:
        body = bodies[number % len(bodies)]
        try:
            _, stream = await loop.create_connection(lambda: _Listening(result, body, ended), "127.0.0.1", plan.port)
        except OSError as error:
            result.asked += 1
            result.errors.append(f"not connected: {error!r}")
            ended()
        else:
            open_ones.append(stream)

    begin = perf_counter()
    tasks = []
    for number in range(plan.streams):
        await asyncio.sleep(max(0.0, begin + number * plan.spread / plan.streams - perf_counter()))
        tasks.append(loop.create_task(listen(number)))
    await asyncio.gather(*tasks)
    try:
        async with asyncio.timeout(plan.limit):
            await over.wait()
    except TimeoutError:
        pass
    for stream in open_ones:
        stream.leave()
