"""A request that is cancelled from outside: its worker stops at once, and its client is told in its own way."""

import json

import pytest

from rbee.core.errors import RequestNotFound
from rbee.core.routing import Standing
from tests.integration.gateway.stubs import until

pytestmark = pytest.mark.anyio
CHAT, STREAM = {"model": "synthetic:a"}, {"model": "synthetic:a", "stream": True}
ID = "x-request-id: mine"


async def never(call):
    await call.gone()


async def stream_for_ever(call):
    call.stream_head()
    call.chunk(b"data: {}\n\n")
    await call.writer.drain()
    await call.gone()


async def begin_json(call):
    call.head("Content-Type: application/json", "Content-Length: 100")
    call.send(b"{")
    await call.writer.drain()
    await call.gone()


async def test_request_that_its_worker_has_is_cancelled(house):
    stub = await house.worker(answer=never)
    client = await house.client()
    client.post(CHAT, "/v1/chat/completions", ID)
    await until(lambda: stub.calls)
    (seen,) = house.gateway.log.cancel("mine")
    assert (seen.state, seen.worker_id, seen.stream) == ("running", "w1", False)
    answer = await client.answer()
    assert (answer.status, answer.json()["error"]["code"]) == (410, "request_cancelled")
    await until(lambda: not stub.open)
    assert house.slots_used() == 0
    client.post(CHAT)
    await until(lambda: len(stub.calls) == 2)


async def test_request_that_waits_is_cancelled_and_leaves_the_queue(house):
    house.announce("w1", Standing.COMING)
    client = await house.client()
    client.post(CHAT, "/v1/chat/completions", ID)
    await until(lambda: house.gateway.waiting()["synthetic:a"])
    (seen,) = house.gateway.log.cancel("mine")
    assert (seen.state, seen.worker_id) == ("waiting", None)
    assert house.gateway.waiting()["synthetic:a"] == 0
    assert (await client.answer()).status == 410


@pytest.mark.parametrize(
    ("path", "start", "code"),
    [
        ("/v1/chat/completions", b"data: ", "request_cancelled"),
        ("/v1/messages", b"event: error\ndata: ", None),
    ],
)
async def test_stream_that_is_cancelled_ends_with_an_error_event_of_its_api(house, path, start, code):
    stub = await house.worker(answer=stream_for_ever)
    client = await house.client()
    client.post(STREAM, path, ID)
    assert (await client.head()).status == 200
    assert await client.chunk() == b"data: {}\n\n"
    house.gateway.log.cancel("mine")
    event = (await client.chunk()).strip()
    assert event.startswith(start)
    error = json.loads(event.removeprefix(start))["error"]
    assert "cancelled" in error["message"]
    assert error.get("code") == code
    assert await client.chunk() == b""
    assert await client.rest() == b""
    await until(lambda: not stub.open)
    (usage,) = house.usages
    assert (usage.status, usage.cancelled) == (200, True)


async def test_answer_that_has_begun_and_is_no_stream_is_cut(house):
    stub = await house.worker(answer=begin_json)
    client = await house.client()
    client.post(CHAT, "/v1/chat/completions", ID)
    await client.head()
    await until(lambda: house.gateway.log.underway()[0].first_byte_seconds is not None)
    house.gateway.log.cancel("mine")
    assert len(await client.rest()) < 100
    await until(lambda: not stub.open)


async def test_two_requests_of_one_id_are_both_cancelled_and_no_other(house):
    stub = await house.worker(answer=never)
    clients = [await house.client() for _ in range(3)]
    for client, line in zip(clients, (ID, ID, "x-request-id: other"), strict=True):
        client.post(CHAT, "/v1/chat/completions", line)
    await until(lambda: len(stub.calls) == 3)
    assert len(house.gateway.log.cancel("mine")) == 2
    assert [(await client.answer()).status for client in clients[:2]] == [410, 410]
    assert [request.request_id for request in house.gateway.log.underway()] == ["other"]


async def test_request_that_was_pipelined_behind_a_cancelled_one_is_answered(house):
    stub = await house.worker(answer=never)
    client = await house.client()
    client.post(CHAT, "/v1/chat/completions", ID)
    client.post(CHAT, "/v1/chat/completions", "x-request-id: next")
    await until(lambda: stub.calls)
    house.gateway.log.cancel("mine")
    assert (await client.answer()).status == 410
    await until(lambda: len(stub.calls) == 2)
    house.gateway.log.cancel("next")
    assert (await client.answer()).headers["x-request-id"] == "next"


async def test_request_that_has_ended_is_listed_and_cannot_be_cancelled(house):
    await house.worker()
    client = await house.client()
    client.post(CHAT, "/v1/chat/completions", ID)
    await client.answer()
    (usage,) = house.gateway.log.ended()
    assert (usage.request_id, usage.status, usage.cancelled, usage.key) == ("mine", 200, False, None)
    with pytest.raises(RequestNotFound):
        house.gateway.log.cancel("mine")


async def test_nothing_that_was_said_is_kept(house):
    async def say_it(call):
        call.json({"choices": [{"message": {"content": "a-secret-answer"}}], "usage": {"prompt_tokens": 3}})

    await house.worker(answer=say_it)
    client = await house.client()
    client.post({**CHAT, "messages": ["a-secret-prompt"]})
    await client.answer()
    (usage,) = house.gateway.log.ended()
    assert usage.prompt_tokens == 3
    assert "secret" not in repr(usage)
