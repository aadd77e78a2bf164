"""What nobody expects, ours or others': one request ends with it, and is told where that is possible."""

import asyncio

import pytest

from rbee.core.routing import Route, Standing
from tests.integration.gateway.stubs import DEADLINE, post, until

pytestmark = pytest.mark.anyio
CHAT = {"model": "synthetic:a", "messages": []}
STREAM = {**CHAT, "stream": True}


def fail(*_, **__):
    raise OverflowError("int too large to convert to float")


@pytest.fixture
async def careless_house(make_house):
    """Its usage sink takes nothing."""
    house = await make_house()
    house.gateway.log.sink = fail
    return house


async def test_sink_that_raises_does_not_cost_the_client_its_answer(careless_house):
    await careless_house.worker()
    client = await careless_house.client()
    for _ in range(2):
        client.post(CHAT)
        assert (await client.answer()).status == 200


async def test_sink_that_raises_does_not_cost_the_client_its_stream(careless_house):
    async def stream(call):
        call.stream_head()
        call.chunk(b"data: 1\n\n")
        call.close()

    await careless_house.worker(answer=stream)
    client = await careless_house.client()
    client.post(STREAM)
    assert b"worker_lost" in (await client.answer()).body


async def test_gateway_that_closes_tells_its_last_requests(make_house):
    house = await make_house()
    await house.worker()
    assert (await house.ask(post(CHAT))).status == 200
    await house.gateway.close(DEADLINE)
    # Not house.usages, which would ask for them.
    assert [usage.status for usage in house._usages] == [200]


async def test_sink_that_raises_when_a_client_leaves_leaves_nothing_behind(careless_house):
    async def hold(call):
        call.stream_head()
        call.chunk(b"data: 1\n\n")
        await call.gone()

    await careless_house.worker(answer=hold)
    client = await careless_house.client()
    client.post(STREAM)
    await client.head()
    client.leave()
    await until(lambda: not careless_house.gateway._connections)
    assert careless_house.slots_used() == 0


async def test_route_that_makes_us_raise_ends_its_request_with_a_500_and_frees_its_slot(house):
    # No engine key has such a letter: writing the head for the engine raises.
    house.routes.publish(Route("w1", "synthetic:a", standing=Standing.READY, host="127.0.0.1", port=9, key="\ud800"))
    answer = await house.ask(post(CHAT))
    assert (answer.status, answer.json()["error"]["code"]) == (500, "unexpected_error")
    assert house.slots_used() == 0
    assert [usage.status for usage in house.usages] == [500]


async def test_waiting_request_that_makes_us_raise_does_not_cost_the_others_their_turn(house):
    house.announce("w1", Standing.COMING)
    clients = [await house.client() for _ in range(2)]
    for number, client in enumerate(clients):
        client.post(CHAT)
        await until(lambda count=number + 1: house.gateway.waiting()["synthetic:a"] == count)
    next(iter(house.gateway.room))._forward = fail
    await house.worker("w1")
    assert [(await client.answer()).status for client in clients] == [500, 200]


async def test_answer_that_makes_us_raise_ends_its_request(house):
    step = asyncio.Event()

    async def stream(call):
        call.stream_head()
        await step.wait()
        call.chunk(b"data: 1\n\n")
        await call.gone()

    await house.worker(answer=stream)
    client = await house.client()
    client.post(STREAM)
    await until(lambda: house.slots_used() == 1)
    next(iter(house.gateway._connections))._exchange.chunk = fail
    step.set()
    await client.rest()
    assert house.slots_used() == 0


async def test_time_goes_on_for_all_where_one_request_makes_us_raise(make_house):
    house = await make_house(keepalive_after=0.0)
    house.announce("w1", Standing.COMING)
    broken, other = await house.client(), await house.client()
    for number, client in enumerate((broken, other)):
        client.post(STREAM)
        await until(lambda count=number + 1: house.gateway.waiting()["synthetic:a"] == count)
    next(iter(house.gateway.room)).tick = fail
    await broken.rest()
    await other.head()
    assert await other.chunk() == b": waiting\n\n"


async def test_close_ends_though_a_connection_never_does(house):
    await house.client()
    await until(lambda: house.gateway._connections)
    connection = next(iter(house.gateway._connections))
    connection.abort = connection.leave = lambda: None
    await house.gateway.close(0.0)
    assert house.gateway._connections


async def test_worker_whose_address_is_none_is_lost(house):
    house.routes.publish(Route("w1", "synthetic:a", standing=Standing.READY, host="a" * 70 + "\xe9.x", port=9))
    answer = await house.ask(post(CHAT))
    assert (answer.status, answer.json()["error"]["code"]) == (502, "worker_lost")
