"""Peers that take their time: what they do not take is not held, and who takes nothing is let go."""

import asyncio
import socket

import pytest

from rbee.core.routing import Route, Standing
from rbee.gateway.exchange import now
from tests.integration.gateway.stubs import Pouring, get, post, until

pytestmark = pytest.mark.anyio
CHAT = {"model": "synthetic:a", "messages": []}
STREAM = {**CHAT, "stream": True}


async def deaf_client(house):
    """It reads only when told to, and its system takes little for it."""
    client = await house.client()
    client.writer.transport.pause_reading()
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    return client


def paused(house) -> bool:
    return any(upstream.paused for upstream in house.gateway.pool._open)


async def test_client_that_never_reads_its_stream_is_cut_and_frees_its_worker(make_house):
    house = await make_house(idle_timeout=0.5)
    worker = await house.worker(answer=Pouring())
    client = await deaf_client(house)
    client.post(STREAM)
    await until(lambda: paused(house))
    await until(lambda: house.slots_used() == 0 and not house.gateway._connections)
    await until(lambda: worker.open == 0)
    assert [(usage.status, usage.stream) for usage in house.usages] == [(499, True)]


async def test_client_that_never_reads_a_control_stream_is_cut(make_house):
    house = await make_house(idle_timeout=0.5)
    house.control.answer = Pouring()
    client = await deaf_client(house)
    client.send(get("/v1/events"))
    await until(lambda: paused(house))
    await until(lambda: not house.gateway._connections)
    await until(lambda: house.control.open == 0)


async def test_client_that_reads_a_little_now_and_then_is_cut_only_when_it_stops(house):
    await house.worker(answer=Pouring())
    client = await deaf_client(house)
    client.post(STREAM)
    await until(lambda: paused(house))
    (connection,) = house.gateway._connections
    for _ in range(3):
        client.writer.transport.resume_reading()
        await client.reader.readexactly(4_000_000)
        client.writer.transport.pause_reading()
        await until(lambda: paused(house))
        time = now() + 74.0
        connection.tick(time)
    assert house.slots_used() == 1

    def cut() -> bool:
        nonlocal time
        time += 76.0
        connection.tick(time)
        return house.slots_used() == 0

    await until(cut)


async def test_client_that_takes_its_answers_late_is_not_late_with_its_next_request(make_house):
    """All its requests are here already: they wait until it reads, not until they come."""
    house = await make_house(header_timeout=0.3)
    client = await deaf_client(house)
    many = 40_000
    client.send(get("/livez") * (many - 1) + get("/livez", "Connection: close"))
    await until(lambda: any(connection._writing_paused for connection in house.gateway._connections))
    # Nothing tells that a limit has passed without a word.
    await asyncio.sleep(1.0)
    client.writer.transport.resume_reading()
    assert (await client.rest()).count(b"HTTP/1.1 200 ") == many


@pytest.fixture
def bare_worker(house):
    """A worker's socket: the system accepts, and takes what it has room for."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        route = Route("w1", "synthetic:a", standing=Standing.READY, host="127.0.0.1", port=sock.getsockname()[1])
        house.routes.publish(route)
        yield sock


async def test_worker_that_does_not_read_its_request_costs_no_more_than_the_request(house, bare_worker):
    body = b'{"model":"synthetic:a"}'.ljust(8_000_000)
    client = await house.client()
    client.send(post(body))
    await until(lambda: house.slots_used() == 1)
    (upstream,) = house.gateway.pool._open
    await until(lambda: upstream._transport is not None and upstream._transport.get_write_buffer_size())
    assert house.gateway.buffer.used == len(body)
    assert upstream._transport.get_write_buffer_size() <= len(body) + 1024
    client.leave()
    await until(lambda: house.gateway.buffer.used == house.slots_used() == 0)


async def test_worker_that_answers_before_it_has_read_all_is_heard_and_not_asked_again_there(house, bare_worker):
    client, loop = await house.client(), asyncio.get_running_loop()
    client.send(post(b'{"model":"synthetic:a"}'.ljust(8_000_000)))
    sock, _ = await loop.sock_accept(bare_worker)
    with sock:
        await loop.sock_recv(sock, 1024)
        await loop.sock_sendall(sock, b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        answer = await client.answer()
    assert (answer.status, answer.body) == (413, b"no")
    assert not house.gateway.pool._open
    client.send(get("/livez"))
    assert (await client.answer()).status == 200


async def test_body_in_tiny_pieces_takes_no_more_than_it_has(house):
    connection = house.gateway._accept()

    class Silent:
        def is_closing(self):
            return False

    connection.connection_made(Silent())
    connection.data_received(post(b"x" * 1_000_000)[:-1_000_000])
    for _ in range(400_000):
        connection.data_received(b"xy")
    assert house.gateway.buffer.used == 800_000
    count = len(connection._parts)  # a failure that shows all of them takes minutes
    assert count < 400
    connection.connection_lost(None)
