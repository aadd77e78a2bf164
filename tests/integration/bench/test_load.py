"""The load and the stub of the gateway's bench count what they should, with nothing between them."""

import asyncio
import select
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bench.gateway import load, payloads, proxies
from bench.gateway.alarm import Alarm
from bench.measure import answers, free_port
from tests.hives import wait_for


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    chosen = free_port()
    stub = subprocess.Popen([sys.executable, "-m", "bench.gateway.stub", str(chosen)])
    try:
        wait_for(lambda: answers(chosen, "/health"), "the stub answers")
        yield chosen
    finally:
        stub.kill()
        stub.wait()


def test_clients_that_ask_again_at_once_are_all_answered(port: int) -> None:
    result = load.run(load.Closed(port, requests=300, connections=7)).check()
    assert (result.asked, result.answered, len(result.took)) == (300, 300, 300)


def test_requests_at_a_rate_are_all_sent_however_few_connections_there_are(port: int) -> None:
    result = load.run(load.Open(port, rate=500, seconds=0.4, connections=1)).check()
    assert (result.asked, result.answered, len(result.took)) == (200, 200, 200)


def test_streams_bring_every_event(port: int) -> None:
    result = load.run(load.Streams(port, streams=20, chunks=5, interval_ms=5, spread=0.02, limit=30)).check()
    assert result.events == 20 * (5 + payloads.EVENTS_AT_END)


def test_a_stream_without_an_interval_comes_whole(port: int) -> None:
    result = load.run(load.Streams(port, streams=1, chunks=20_000, interval_ms=0, spread=0, limit=30)).check()
    assert result.events == 20_000 + payloads.EVENTS_AT_END


def test_streams_that_are_left_are_no_longer_open_at_the_stub(port: int) -> None:
    plan = load.Streams(port, streams=5, chunks=2, interval_ms=3_600_000, spread=0.01, limit=0.5)
    result = load.run(plan)
    assert (result.asked, result.answered, result.errors) == (5, 0, [])
    assert wait_for(lambda: proxies.open_streams(port) == 0, "no stream is open")


def test_a_stream_that_breaks_off_is_an_error() -> None:
    result = asyncio.run(ask_one_that_breaks_off())
    assert (result.asked, result.answered) == (1, 0)
    assert result.errors[0].startswith("lost")
    with pytest.raises(RuntimeError, match="0 of 1"):
        result.check()


async def ask_one_that_breaks_off() -> load.Result:
    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(payloads.stream_head() + payloads.stream_chunk())
        writer.close()

    server = await asyncio.start_server(break_off, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        return await asyncio.to_thread(load.run, load.Streams(port, 1, 5, 10, 0, 30))


class FakeLoop:
    def add_reader(self, fd, callback):
        self.fd, self.read = fd, callback


def test_alarm_that_was_set_anew_after_it_rang_rings_later_and_not_now() -> None:
    loop, rung = FakeLoop(), []
    alarm = Alarm(loop, lambda: rung.append(True))
    alarm.set(0.0)
    assert select.select([loop.fd], [], [], 10)[0]
    alarm.set(3600.0)
    loop.read()
    assert not rung
