"""Upstreams and clients that do exactly what a test says, byte by byte, over real sockets."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from rbee.core.auth import AuthPolicy
from rbee.core.routing import Route, RouteTable, Standing
from rbee.core.usage import Usage
from rbee.gateway.options import GatewayOptions
from rbee.gateway.server import Gateway

DEADLINE = 10.0
"""Seconds; far more than anything here takes, on a machine that does other things, too."""


async def until(condition: Callable[[], object]) -> None:
    """Wait for a state of something foreign, which sends no event."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - nothing tells us when a foreign state changes
            await asyncio.sleep(0.005)


@dataclass
class Message:
    """A request that a stub got, or an answer that a client got. Names of headers are lower case."""

    start: str
    headers: dict[str, str]
    body: bytes = b""
    raw_head: bytes = b""

    @property
    def status(self) -> int:
        return int(self.start.split()[1])

    @property
    def path(self) -> str:
        return self.start.split()[1]

    def json(self):
        return json.loads(self.body)


async def read_head(reader: asyncio.StreamReader) -> Message:
    raw = await reader.readuntil(b"\r\n\r\n")
    lines = raw[:-4].decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return Message(lines[0], headers, raw_head=raw)


async def read_chunk(reader: asyncio.StreamReader) -> bytes:
    size = int((await reader.readuntil(b"\r\n")).strip(), 16)
    data = await reader.readexactly(size)
    assert await reader.readexactly(2) == b"\r\n"
    return data


async def read_body(reader: asyncio.StreamReader, message: Message, *, to_end: bool = False) -> bytes:
    if message.headers.get("transfer-encoding") == "chunked":
        parts = []
        while data := await read_chunk(reader):
            parts.append(data)
        return b"".join(parts)
    if "content-length" in message.headers:
        return await reader.readexactly(int(message.headers["content-length"]))
    return await reader.read() if to_end else b""


class Call:
    """One request at a stub, and the means to answer it."""

    def __init__(
        self, stub: "Stub", request: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.stub = stub
        self.request = request
        self.reader = reader
        self.writer = writer

    def send(self, *pieces: bytes) -> None:
        self.writer.write(b"".join(pieces))

    def head(self, *lines: str, status: str = "200 OK") -> None:
        self.send("\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode())

    def json(self, value: object, status: str = "200 OK") -> None:
        body = json.dumps(value).encode()
        self.head("Content-Type: application/json", f"Content-Length: {len(body)}", status=status)
        if not self.request.start.startswith("HEAD"):
            self.send(body)

    def stream_head(self) -> None:
        self.head("Content-Type: text/event-stream", "Transfer-Encoding: chunked")

    def chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        self.send(b"0\r\n\r\n")

    async def gone(self) -> None:
        """Until the other side has closed the connection."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.writer.transport.abort()


Answer = Callable[[Call], Awaitable[None]]


async def answer_json(call: Call) -> None:
    call.json({"path": call.request.path, "body": call.request.body.decode("latin-1"), "by": call.stub.name})


class Stub:
    """An HTTP server that keeps its connections; ``answer`` is what it does with each request."""

    def __init__(self, name: str, answer: Answer = answer_json) -> None:
        self.name = name
        self.answer = answer
        self.calls: list[Call] = []
        self.connections = 0
        self.open = 0
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, path: str | None = None) -> None:
        if path is not None:
            self._server = await asyncio.start_unix_server(self._serve, path)
        else:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open += 1
        try:
            while not writer.is_closing():
                request = await read_head(reader)
                request.body = await read_body(reader, request)
                call = Call(self, request, reader, writer)
                self.calls.append(call)
                await self.answer(call)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.transport.abort()

    @property
    def bodies(self) -> list[bytes]:
        return [call.request.body for call in self.calls]

    async def stop(self) -> None:
        """Stop to listen and end all connections, as a process that dies does."""
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await until(lambda: not self._tasks)


class Client:
    """A connection to the gateway that sends what it is told and reads answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, raw: bytes) -> None:
        self.writer.write(raw)

    def post(self, value: object, path: str = "/v1/chat/completions", *lines: str) -> None:
        self.send(post(value, path, *lines))

    async def head(self) -> Message:
        async with asyncio.timeout(DEADLINE):
            return await read_head(self.reader)

    async def chunk(self) -> bytes:
        async with asyncio.timeout(DEADLINE):
            return await read_chunk(self.reader)

    async def answer(self, *, to_end: bool = False, bodyless: bool = False) -> Message:
        async with asyncio.timeout(DEADLINE):
            message = await read_head(self.reader)
            if not bodyless:
                message.body = await read_body(self.reader, message, to_end=to_end)
            return message

    async def rest(self) -> bytes:
        """All that comes until the gateway closes; a reset counts as an end."""
        parts = []
        async with asyncio.timeout(DEADLINE):
            try:
                while data := await self.reader.read(65536):
                    parts.append(data)
            except ConnectionError:
                pass
        return b"".join(parts)

    def leave(self) -> None:
        self.writer.transport.abort()


class Pouring:
    """Answers with a stream of *pieces* pieces, as fast as they are taken: by default more than sockets hold."""

    PIECE = b"x" * 65536

    def __init__(self, pieces: int = 2000) -> None:
        self.pieces = pieces
        self.sent = 0

    async def __call__(self, call: Call) -> None:
        call.stream_head()
        for _ in range(self.pieces):
            call.chunk(self.PIECE)
            self.sent += len(self.PIECE)
            await call.writer.drain()
        call.end()


def post(value: object, path: str = "/v1/chat/completions", *lines: str) -> bytes:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    head = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*head, *lines, "", ""]).encode() + body


def get(path: str = "/livez", *lines: str, method: str = "GET", host: str = "localhost") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *lines, "", ""]).encode()


@dataclass
class House:
    """A gateway with its routes, and all that a test adds to it."""

    gateway: Gateway
    routes: RouteTable
    control: Stub
    port: int
    _usages: list[Usage]
    stubs: list[Stub] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)

    async def worker(
        self, name: str = "w1", model: str = "synthetic:a", answer: Answer = answer_json, slots: int = 16
    ) -> Stub:
        """A ready worker of *model*."""
        stub = Stub(name, answer)
        await stub.listen()
        self.stubs.append(stub)
        self.place(stub, model, slots=slots)
        return stub

    def place(
        self, stub: Stub, model: str = "synthetic:a", standing: Standing = Standing.READY, slots: int = 16
    ) -> None:
        self.routes.publish(
            Route(stub.name, model, standing=standing, host="127.0.0.1", port=stub.port, key="engine-key", slots=slots)
        )

    def announce(self, name: str, standing: Standing, model: str = "synthetic:a", message: str = "") -> None:
        """A worker that cannot be asked yet, or no more."""
        self.routes.publish(Route(name, model, standing=standing, message=message))

    async def client(self) -> Client:
        # A large limit would let the reader swallow what the test wants to stay in the sockets.
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, limit=65536))
        self.clients.append(client)
        return client

    async def ask(self, raw: bytes, *, bodyless: bool = False, to_end: bool = False) -> Message:
        """One request on a connection of its own."""
        client = await self.client()
        client.send(raw)
        return await client.answer(bodyless=bodyless, to_end=to_end)

    @property
    def usages(self) -> list[Usage]:
        self.gateway.log.settle()
        return self._usages

    def slots_used(self) -> int:
        return sum(route.in_flight for route in self.routes)


async def open_house(control_path: str, auth: AuthPolicy, **options: object) -> House:
    control = Stub("control")
    await control.listen(control_path)
    routes, usages = RouteTable(), []
    gateway = Gateway(GatewayOptions(control_path, **options), routes, auth, usages.append, "1.2.3")
    gateway.control_up = True
    gateway.adopting = False
    gateway.ready_problem = lambda: None
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    await gateway.serve(sock)
    return House(gateway, routes, control, sock.getsockname()[1], usages)


async def close_house(house: House) -> None:
    for client in house.clients:
        client.leave()
    await house.gateway.close(DEADLINE)
    for stub in (house.control, *house.stubs):
        await stub.stop()
