"""The one upstream of all proxies: answers from memory on each of the given ports, and reads no more than it must.

``python -m bench.gateway.stub PORT ...`` runs until it is ended.
"""

import asyncio
import socket
import sys
from heapq import heappop, heappush, heapreplace
from time import perf_counter
from typing import Final, cast

import uvloop

from bench.gateway import payloads
from bench.gateway.alarm import Alarm

BACKLOG: Final = 4096
BATCH: Final = 64
"""Chunks a write of a stream without an interval."""

IDLE_INTERVAL: Final = 60.0
"""Seconds; such a stream is there to wait, and its second chunk must not come before it is left."""

GOLDEN_RATIO: Final = (5**0.5 - 1) / 2

_COMPLETION: Final = payloads.completion()
_HEAD: Final = payloads.stream_head()
_CHUNK: Final = payloads.stream_chunk()
_CHUNKS: Final = _CHUNK * BATCH
_END: Final = payloads.stream_end()
_MODELS: Final = {"object": "list", "data": [{"id": payloads.MODEL, "object": "model", "owned_by": "bench"}]}
_INFO: Final = {"model_path": payloads.MODEL, "served_model_name": payloads.MODEL, "is_generation": True}
_PAGES: Final = {
    b"/health": payloads.json_answer({"status": "ok"}),
    b"/v1/models": payloads.json_answer(_MODELS),
    b"/slots": payloads.json_answer([]),
    b"/metrics": payloads.json_answer({}),
    b"/get_model_info": payloads.json_answer(_INFO),
    b"/get_server_info": payloads.json_answer(_INFO),
    b"/model_info": payloads.json_answer(_INFO),
    b"/server_info": payloads.json_answer(_INFO),
}
_MISSING: Final = payloads.json_answer({"error": {"message": "not here"}}, "404 Not Found")


class Wheel:
    """Who is due next. Streams have a moment of their own in their interval, or one for all that came about together.

    Those moments lie as evenly as can be however many there are (multiples of the golden ratio).
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._alarm = Alarm(loop, self._turn)
        self._due: list[tuple[float, int, float, Answering]] = []
        self._count = 0

    def add(self, stream: "Answering", interval: float, *, together: bool) -> None:
        now = perf_counter()
        self._count += 1
        if together:
            due = (now // interval + 1) * interval
        elif interval >= IDLE_INTERVAL:
            due = now + interval
        else:
            due = now + self._count * GOLDEN_RATIO % 1 * interval
        self._push(due, interval, stream)

    def _push(self, due: float, interval: float, stream: "Answering") -> None:
        heappush(self._due, (due, id(stream), interval, stream))
        if self._due[0][3] is stream:
            self._alarm.set(due - perf_counter())

    def _turn(self) -> None:
        now = perf_counter()
        while self._due and self._due[0][0] <= now:
            due, number, interval, stream = self._due[0]
            if stream.step():
                heapreplace(self._due, (due + interval, number, interval, stream))
            else:
                heappop(self._due)
        if self._due:
            self._alarm.set(self._due[0][0] - perf_counter())


class Answering(asyncio.Protocol):
    """One connection. Requests come one after the other, as every proxy here sends them."""

    open_streams = 0

    def __init__(self, loop: asyncio.AbstractEventLoop, wheel: Wheel) -> None:
        self._loop = loop
        self._wheel = wheel
        self._data = b""
        self._left = 0
        self._interval = 0.0
        self._streaming = False
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        data = self._data + data if self._data else data
        end = data.find(b"\r\n\r\n") + 4
        if end == 3:
            self._data = data
            return
        head = data[:end]
        if head.startswith(b"GET"):
            self._data = b""
            self._page(head.split(b" ", 2)[1])
            return
        if not _is_whole(head.lower(), data, end):
            self._data = data
            return
        self._data = b""
        self._answer(data[end:])

    def _page(self, target: bytes) -> None:
        if target == b"/streams":
            self._transport.write(payloads.json_answer({"open": Answering.open_streams}))
        else:
            self._transport.write(_PAGES.get(target, _MISSING))

    def _answer(self, body: bytes) -> None:
        if b'"stream":true' not in body and b'"stream": true' not in body:
            self._transport.write(_COMPLETION)
            return
        self._left = _number(body, b'"max_tokens":') - 1
        milliseconds, together = divmod(_number(body, b'"seed":'), 2)
        self._interval = milliseconds / 1000
        self._streaming = True
        Answering.open_streams += 1
        self._transport.write(_HEAD + _CHUNK)
        if self._interval:
            self._wheel.add(self, self._interval, together=bool(together))
        else:
            self._pour()

    def step(self) -> bool:
        """Send what is due; false where the stream has ended."""
        if not self._streaming:
            return False
        if self._left <= 0:
            self._finish()
            return False
        self._left -= 1
        self._transport.write(_CHUNK)
        return True

    def _pour(self) -> None:
        if self._paused or not self._streaming:
            return
        if self._left > 0:
            count = min(self._left, BATCH)
            self._left -= count
            self._transport.write(_CHUNKS if count == BATCH else _CHUNK * count)
            self._loop.call_soon(self._pour)
        else:
            self._finish()

    def _finish(self) -> None:
        self._is_over()
        self._transport.write(_END)

    def _is_over(self) -> None:
        Answering.open_streams -= self._streaming
        self._streaming = False

    def connection_lost(self, error: Exception | None) -> None:
        self._is_over()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if not self._interval:
            self._pour()


def _is_whole(head: bytes, data: bytes, end: int) -> bool:
    start = head.find(b"content-length:")
    if start < 0:
        return data.endswith(b"0\r\n\r\n")
    return len(data) - end >= int(head[start + 15 : head.index(b"\r\n", start)])


def _number(body: bytes, field: bytes) -> int:
    start = body.index(field) + len(field)
    digits = body[start : start + 12].lstrip()
    return int(digits[: next(at for at, byte in enumerate(digits) if byte not in b"0123456789")])


async def serve(ports: list[int]) -> None:
    loop = asyncio.get_running_loop()
    wheel = Wheel(loop)
    for port in ports:
        sock = socket.create_server(("127.0.0.1", port), backlog=BACKLOG)
        await loop.create_server(lambda: Answering(loop, wheel), sock=sock, backlog=BACKLOG)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve([int(port) for port in sys.argv[1:]]))
