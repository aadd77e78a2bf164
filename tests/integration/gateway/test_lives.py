"""Requests that run through the death of their worker and its next life: ended, told, counted, at the right process."""

import asyncio
import json

import pytest

from rbee.core.routing import Standing
from tests.integration.gateway.stubs import answer_json, post, until

pytestmark = pytest.mark.anyio
CHAT = {"model": "synthetic:a", "messages": []}
STREAM = {**CHAT, "stream": True}


async def hold(call):
    await call.gone()


async def test_request_of_a_dead_worker_moves_to_its_next_life_though_its_connection_never_ends(house):
    """A grandchild that was left holds the socket; the worker has come back at another port."""
    house.gateway.pool.gone_grace = 0.05
    first = await house.worker("w1", answer=hold)
    client = await house.client()
    client.post(CHAT)
    await until(lambda: first.calls)
    house.announce("w1", Standing.COMING)
    assert house.routes.in_flight("w1") == 1
    await until(lambda: house.gateway.waiting()["synthetic:a"] == 1)
    assert house.routes.in_flight("w1") == 0
    second = await house.worker("w1")
    answer = await client.answer()
    assert (answer.status, len(second.calls)) == (200, 1)


async def test_stream_of_a_removed_worker_ends_with_an_error_event_though_its_connection_never_ends(house):
    house.gateway.pool.gone_grace = 0.05

    async def stream(call):
        call.stream_head()
        call.chunk(b"data: 1\n\n")
        await call.gone()

    await house.worker("w1", answer=stream)
    client = await house.client()
    client.post(STREAM)
    await client.head()
    await client.chunk()
    house.routes.withdraw("w1")
    assert json.loads((await client.chunk()).strip().removeprefix(b"data: "))["error"]["code"] == "worker_lost"
    assert not house.routes._left_in_flight


async def test_worker_that_is_drained_ends_what_it_has(house):
    """Out of routing, its process still there: nothing is cut, and its connection is not kept for another request."""
    house.gateway.pool.gone_grace = 0.0
    release = asyncio.Event()

    async def answer(call):
        await release.wait()
        await answer_json(call)

    worker = await house.worker("w1", answer=answer)
    client = await house.client()
    client.post(CHAT)
    await until(lambda: worker.calls)
    house.place(worker, standing=Standing.OUT)
    release.set()
    assert (await client.answer()).status == 200
    await until(lambda: worker.open == 0)


async def test_stranger_on_a_dead_workers_port_is_not_believed(house):
    async def refuse(call):
        call.json({"error": {"message": "Invalid API key"}}, status="401 Unauthorized")

    stranger = await house.worker("w1", answer=refuse)
    await house.worker("w2")
    house.routes.routes["w2"].slots = 1
    house.routes.routes["w1"].slots = 8
    answer = await house.ask(post(CHAT))
    assert (answer.status, answer.headers["x-rbee-worker"]) == (200, "w2")
    assert len(stranger.calls) == 1


async def test_adopted_worker_gets_the_requests_that_waited_for_it(house):
    house.gateway.adopting = True
    clients = []
    for number in range(3):
        clients.append(await house.client())
        clients[-1].post({**CHAT, "n": number})
        await until(lambda count=number + 1: house.gateway.waiting() == {"other": count})
    worker = await house.worker("w1")
    assert [(await client.answer()).status for client in clients] == [200] * 3
    assert sorted(json.loads(body)["n"] for body in worker.bodies) == [0, 1, 2]
    assert {usage.model for usage in house.usages} == {"synthetic:a"}


async def test_stream_that_waits_for_adoption_gets_signs_of_life_and_then_its_404_as_an_event(make_house):
    house = await make_house(keepalive_after=0.0)
    house.gateway.adopting = True
    client = await house.client()
    client.post(STREAM)
    assert (await client.head()).status == 200
    assert await client.chunk() == b": waiting\n\n"
    house.gateway.adopting = False
    assert b"model_not_found" in await client.chunk()


async def test_usage_of_the_last_requests_is_told_before_the_gateway_has_closed(make_house):
    house = await make_house()
    await house.worker()
    told = []
    house.gateway.log.sink = told.append
    await house.ask(post({"model": "synthetic:a"}))
    for client in house.clients:
        client.leave()
    await house.gateway.close(5.0)
    assert [usage.status for usage in told] == [200]
