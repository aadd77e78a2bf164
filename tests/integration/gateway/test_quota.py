"""What a key may ask: no more at once, no more a minute, and its place is given back however a request ends."""

import pytest

from rbee.core.auth import AuthPolicy, Principal, Role, digest
from rbee.core.routing import Standing
from tests.integration.gateway.stubs import answer_json, until

pytestmark = pytest.mark.anyio
CHAT, STREAM = {"model": "synthetic:a"}, {"model": "synthetic:a", "stream": True}
PATH = "/v1/chat/completions"


def bearer(name):
    return f"Authorization: Bearer {name}-key-0123456789"


def key(name, role=Role.CLIENT, **limits):
    return {digest(f"{name}-key-0123456789"): Principal(role, name, **limits)}


KEYS = AuthPolicy(
    {
        **key("one", max_in_flight=1),
        **key("two", max_in_flight=1),
        **key("slow", requests_per_minute=2),
        **key("free"),
        **key("prom", Role.METRICS),
    },
    b"secret",
)


@pytest.fixture(name="limited")
async def limited_house(make_house):
    house = await make_house(KEYS)
    yield house
    await until(lambda: not house.gateway.quotas.in_flight("one"))
    assert len(house.gateway.log) == 0


async def ask(house, name, value=CHAT):
    client = await house.client()
    client.post(value, PATH, bearer(name))
    return await client.answer()


async def hang(call):
    await call.gone()


async def test_key_with_a_request_under_way_is_refused_another(limited):
    stub = await limited.worker(answer=hang)
    first = await limited.client()
    first.post(CHAT, PATH, bearer("one"))
    await until(lambda: stub.calls)
    refused = await ask(limited, "one")
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    error = refused.json()["error"]
    assert (error["code"], error["type"]) == ("too_many_requests", "rate_limit_error")
    assert "keys.one.max_in_flight" in error["message"]
    assert len(stub.calls) == 1
    first.leave()


async def test_one_keys_limit_is_no_other_keys(limited):
    stub = await limited.worker(answer=hang)
    clients = [await limited.client() for _ in range(4)]
    for client, name in zip(clients, ("one", "two", "free", "free"), strict=True):
        client.post(CHAT, PATH, bearer(name))
    await until(lambda: len(stub.calls) == 4)
    for client in clients:
        client.leave()


async def test_request_that_waits_is_under_way(limited):
    limited.announce("w1", Standing.COMING)
    client = await limited.client()
    client.post(CHAT, PATH, bearer("one"))
    await until(lambda: limited.gateway.waiting()["synthetic:a"])
    assert (await ask(limited, "one")).status == 429
    client.leave()


async def refuse_the_key(call):
    call.json({}, status="401 No")


async def close(call):
    call.close()


async def break_off(call):
    call.stream_head()
    call.chunk(b"data: {}\n\n")
    await call.writer.drain()
    call.close()


@pytest.mark.parametrize("answer", [answer_json, refuse_the_key, close, break_off])
@pytest.mark.parametrize("value", [CHAT, STREAM, {"model": "nobody"}, {"model": 7}, b"no json"])
async def test_place_is_given_back_however_a_request_ends(limited, answer, value):
    await limited.worker(answer=answer)
    await limited.worker("w2", answer=answer)
    client = await limited.client()
    client.post(value, PATH, bearer("one"), "Connection: close")
    await client.rest()
    limited.stubs[0].answer = limited.stubs[1].answer = answer_json
    assert (await ask(limited, "one")).status == 200


async def test_place_of_a_client_that_went_away_is_given_back(limited):
    stub = await limited.worker(answer=hang)
    client = await limited.client()
    client.post(CHAT, PATH, bearer("one"))
    await until(lambda: stub.calls)
    client.leave()
    await until(lambda: not limited.gateway.quotas.in_flight("one"))
    stub.answer = answer_json
    assert (await ask(limited, "one")).status == 200


async def test_place_of_a_cancelled_request_is_given_back(limited):
    stub = await limited.worker(answer=hang)
    client = await limited.client()
    client.post(CHAT, PATH, bearer("one"), "x-request-id: mine")
    await until(lambda: stub.calls)
    limited.gateway.log.cancel("mine")
    assert (await client.answer()).status == 410
    stub.answer = answer_json
    assert (await ask(limited, "one")).status == 200


async def test_body_that_is_still_on_its_way_holds_no_place(limited):
    await limited.worker()
    client = await limited.client()
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    client.send(f"{head}{bearer('one')}\r\nContent-Length: 100\r\n\r\n".encode())
    await until(lambda: any(connection._exchange for connection in limited.gateway._connections))
    assert (await ask(limited, "one")).status == 200


async def test_key_that_asks_too_often_is_told_when_it_may_again(limited):
    await limited.worker()
    assert [(await ask(limited, "slow")).status for _ in range(3)] == [200, 200, 429]
    refused = await ask(limited, "slow")
    assert 55 <= int(refused.headers["retry-after"]) <= 60
    assert "keys.slow.requests_per_minute" in refused.json()["error"]["message"]
    assert [usage.status for usage in limited.usages] == [200, 200, 429, 429]
    assert [usage.key for usage in limited.usages] == ["slow"] * 4


async def test_refused_request_leaves_its_connection_as_it_was(limited):
    await limited.worker()
    client = await limited.client()
    for status in (200, 200, 429, 429):
        client.post(CHAT, PATH, bearer("slow"))
        assert (await client.answer()).status == status
    client.post(CHAT, PATH, bearer("free"))
    assert (await client.answer()).status == 200


async def test_key_for_metrics_asks_no_model(limited):
    await limited.worker()
    assert (await ask(limited, "prom")).status == 403
