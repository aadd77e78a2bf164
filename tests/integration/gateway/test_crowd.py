"""More clients than there are descriptors for."""

import pytest

from rbee.gateway import crowd
from tests.integration.gateway.stubs import Call, get, post, until

pytestmark = pytest.mark.anyio
CHAT = {"model": "synthetic:a", "messages": []}
FEW = crowd.RESERVED + crowd.FOR_EACH_WORKER + 4 * crowd.FOR_EACH_CLIENT
"""Descriptors for four clients beside one worker."""


async def until_there_are(house, clients):
    await until(lambda: len(house.gateway._connections) == clients)


async def test_the_client_that_has_been_idle_for_longest_makes_room(make_house, monkeypatch):
    monkeypatch.setattr(crowd, "IDLE_FOR", 0.0)
    house = await make_house(descriptors=FEW)
    await house.worker()
    clients = [await house.client() for _ in range(4)]
    for client in (*clients[1:], clients[0]):
        client.send(get())
        assert (await client.answer()).status == 200
    fifth = await house.client()
    fifth.send(get())
    assert (await fifth.answer()).status == 200
    assert await clients[1].rest() == b""
    clients[0].send(get())
    assert (await clients[0].answer()).status == 200


async def test_where_all_are_busy_a_new_one_is_told_so(make_house):
    house = await make_house(descriptors=FEW)
    calls = []

    async def hold(call: Call) -> None:
        calls.append(call)
        await call.gone()

    await house.worker(answer=hold)
    clients = [await house.client() for _ in range(4)]
    for client in clients:
        client.send(post(CHAT))
    await until(lambda: len(calls) == 4)
    fifth = await house.client()
    answer = await fifth.answer()
    assert answer.status == 503
    assert answer.json()["error"]["code"] == "too_many_connections"
    assert "4 clients" in answer.json()["error"]["message"]
    assert (answer.headers["retry-after"], answer.headers["connection"]) == ("1", "close")
    assert await fifth.rest() == b""
    fifth.leave()
    clients[0].leave()
    await until_there_are(house, 3)
    assert (await house.ask(get())).status == 200


async def test_a_crowd_beyond_that_is_not_even_told(make_house):
    """Each answer holds a descriptor until its client has read it."""
    house = await make_house(descriptors=FEW)
    await house.worker()
    clients = [await house.client() for _ in range(4 + crowd.TURNED_AWAY + 2)]
    ends = [await client.rest() for client in clients[-2:]]
    assert ends == [b"", b""]
    assert (await clients[-3].answer()).status == 503


async def test_clients_make_room_for_workers_that_come_later(make_house, monkeypatch):
    monkeypatch.setattr(crowd, "IDLE_FOR", 0.0)
    house = await make_house(descriptors=FEW + crowd.FOR_EACH_CLIENT)
    await house.worker()
    clients = [await house.client() for _ in range(5)]
    await until_there_are(house, 5)
    await house.worker("w2")
    await until_there_are(house, 4)
    assert await clients[0].rest() == b""
