"""The corpus of hostile requests: the right answers, however the bytes are cut, and nothing that hides gets through."""

import itertools
import random
import re

import pytest

from tests.corpus import read
from tests.corpus.read import HostileRequest
from tests.integration.gateway.stubs import House, get, until

pytestmark = pytest.mark.anyio
REQUESTS = read.requests()
USUAL = read.spelled("<post>Content-Length: 23\r\n\r\n<ask>")
"""A head like it, save for its length, is not parsed again."""

LARGE = 5000
"""Bytes from which a request is not sent byte by byte as well: it takes a second, and shows nothing new."""

_ANSWER = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n(.*?)\r\n\r\n", re.DOTALL)


class FakeTransport:
    """What a connection writes, and whether it has ended its side."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = write_eof = close

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


def statuses(written: bytes, *, is_head: bool) -> list[int]:
    """The statuses of the whole answers in *written*, without 100; *is_head*: the first has no body."""
    found, position = [], 0
    while match := _ANSWER.match(written, position):
        lengths = re.search(rb"(?i)content-length: (\d+)", match[2])
        assert lengths or match[1] == b"100", "an answer of the corpus has a length"
        position = match.end()
        if lengths and not (is_head and not found):
            position += int(lengths[1])
        if position > len(written):
            break
        if match[1] != b"100":
            found.append(int(match[1]))
    return found


def counts(house: House) -> list[int]:
    return [len(stub.calls) for stub in (house.control, *house.stubs)]


def seen(house: House, before: list[int]) -> tuple[str, ...]:
    """The targets that upstreams were asked for since there were *before* calls at each."""
    stubs = zip((house.control, *house.stubs), before, strict=True)
    return tuple(call.request.path for stub, count in stubs for call in stub.calls[count:])


def pieces(row: HostileRequest, dice: random.Random) -> list[bytes]:
    cuts = sorted(dice.randrange(len(row.raw) + 1) for _ in range(dice.randrange(1, 9)))
    return [row.raw[start:end] for start, end in itertools.pairwise([0, *cuts, len(row.raw)])]


async def feed(house: House, row: HostileRequest, parts: list[bytes], *, first: bytes = b"") -> None:
    """Give *parts* to a new connection one by one, behind *first*, and check all that the row says."""
    transport = FakeTransport()
    connection = house.gateway._accept()
    connection.connection_made(transport)
    if first:
        connection.data_received(first)
        await until(lambda: statuses(transport.written, is_head=False) == [200])
        transport.written = b""
    before = counts(house)
    for part in parts:
        if not transport.closed:
            connection.data_received(part)
        assert len(connection._buffer) <= house.gateway.options.max_header + len(part)
    answers, closed = [*row.answers], row.closed
    if row.early and transport.closed:
        answers, closed = answers[:1], True
    if row.end == "close":
        connection.connection_lost(None)
    elif closed:
        await until(lambda: transport.closed)
    else:
        await until(lambda: len(statuses(transport.written, is_head=row.is_head)) == len(answers))
        connection.data_received(get("/readyz"))
        answers.append(200)
    assert statuses(transport.written, is_head=row.is_head) == answers
    assert all(upstream._asker is None for upstream in house.gateway.pool._open)
    if row.end != "close":
        connection.connection_lost(None)
    assert seen(house, before) == row.seen
    assert house.gateway.buffer.used == 0


@pytest.mark.parametrize("row", REQUESTS, ids=[row.name for row in REQUESTS])
async def test_hostile_request_gets_its_answer_however_it_is_cut(make_house, row):
    waits = {"header_timeout": 0.05, "idle_timeout": 0.05} if row.end == "wait" else {}
    house = await make_house(**waits)
    await house.worker()
    dice = random.Random(row.name)
    await feed(house, row, [row.raw])
    await feed(house, row, [row.raw], first=USUAL)
    await feed(house, row, pieces(row, dice))
    await feed(house, row, pieces(row, dice))
    if len(row.raw) < LARGE:
        await feed(house, row, [bytes([byte]) for byte in row.raw])


@pytest.mark.parametrize("row", REQUESTS, ids=[row.name for row in REQUESTS])
async def test_hostile_request_gets_its_answer_over_a_real_connection(make_house, row):
    waits = {"header_timeout": 0.05, "idle_timeout": 0.05} if row.end == "wait" else {}
    house = await make_house(**waits)
    await house.worker()
    client = await house.client()
    client.send(row.raw + (b"" if row.closed else get("/readyz", "Connection: close")))
    if row.end == "close":
        await until(lambda: not client.writer.transport.get_write_buffer_size())
        client.writer.close()
        await until(lambda: not house.gateway._connections)
    else:
        answers = statuses(await client.rest(), is_head=row.is_head)
        # A body that the system delivers later than its head is not waited for.
        early = [*row.answers[:1]] if row.early else None
        assert answers in ([*row.answers] + [200] * (not row.closed), early)
    assert seen(house, [0, 0]) == row.seen
    assert house.gateway.buffer.used == 0
