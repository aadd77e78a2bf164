"""Requests that wait: in order, within limits, with signs of life, and gone at once when their client is."""

import asyncio
import json

import pytest

from rbee.core.routing import Standing
from tests.integration.gateway.stubs import answer_json, get, post, until

pytestmark = pytest.mark.anyio
CHAT = {"model": "synthetic:a", "messages": []}
STREAM = {**CHAT, "stream": True}


async def waits(house, count=1):
    await until(lambda: house.gateway.waiting().get("synthetic:a") == count)


async def test_requests_for_a_loading_model_wait_and_go_first_come_first_served(house):
    house.announce("w1", Standing.COMING)
    clients = []
    for number in range(5):
        clients.append(await house.client())
        clients[-1].post({**CHAT, "n": number})
        await waits(house, number + 1)
    assert house.slots_used() == 0
    worker = await house.worker("w1")
    answers = [await client.answer() for client in clients]
    assert [answer.status for answer in answers] == [200] * 5
    assert sorted(json.loads(body)["n"] for body in worker.bodies) == list(range(5))
    assert all(int(answer.headers["x-rbee-queue-ms"]) >= 0 for answer in answers)
    assert all(usage.queue_seconds > 0 for usage in house.usages)


async def test_order_of_arrival_is_the_order_at_the_worker(house):
    """One connection at a time reaches the worker, so its own order is that in which it was asked."""
    house.announce("w1", Standing.COMING)
    asked = []
    clients = []
    for number in range(8):
        clients.append(await house.client())
        clients[-1].post({**CHAT, "n": number})
        await waits(house, number + 1)
    ask = house.gateway.pool.ask
    house.gateway.pool.ask = lambda address, request, asker, **more: (
        asked.append(json.loads(request.body)["n"]),
        ask(address, request, asker, **more),
    )[1]
    await house.worker("w1")
    for client in clients:
        await client.answer()
    assert asked == list(range(8))


async def test_full_queue_refuses_the_next_one(make_house):
    house = await make_house(queue_limit=1)
    house.announce("w1", Standing.COMING)
    house.announce("w2", Standing.COMING, "synthetic:b")
    first = await house.client()
    first.post(CHAT)
    await waits(house)
    answer = await house.ask(post(CHAT))
    assert (answer.status, answer.json()["error"]["code"]) == (429, "queue_full")
    assert int(answer.headers["retry-after"]) >= 1
    other = await house.client()
    other.post({"model": "synthetic:b"})
    await until(lambda: house.gateway.waiting() == {"synthetic:a": 1, "synthetic:b": 1})


async def test_wait_has_a_limit(make_house):
    house = await make_house(queue_timeout=0.3)
    house.announce("w1", Standing.COMING)
    answer = await house.ask(post(CHAT))
    assert (answer.status, answer.json()["error"]["code"]) == (503, "queue_timeout")
    assert int(answer.headers["retry-after"]) >= 1
    assert house.usages[0].queue_seconds >= 0.25


async def test_client_that_leaves_the_queue_is_dropped_at_once(house):
    house.announce("w1", Standing.COMING)
    client, other = await house.client(), await house.client()
    client.post({**CHAT, "n": "gone"})
    await waits(house)
    other.post({**CHAT, "n": "there"})
    await waits(house, 2)
    client.leave()
    await waits(house, 1)
    worker = await house.worker("w1")
    assert (await other.answer()).status == 200
    assert [json.loads(body)["n"] for body in worker.bodies] == ["there"]
    assert sorted(usage.status for usage in house.usages) == [200, 499]


async def test_model_that_fails_while_requests_wait_for_it_tells_them_why(house):
    house.announce("w1", Standing.COMING)
    client = await house.client()
    client.post(CHAT)
    await waits(house)
    house.announce("w1", Standing.OUT, message="the load failed: not a GGUF")
    answer = await client.answer()
    assert answer.status == 503
    assert "not a GGUF" in answer.json()["error"]["message"]


async def test_model_that_is_removed_while_requests_wait_for_it(house):
    house.announce("w1", Standing.COMING)
    client = await house.client()
    client.post(CHAT)
    await waits(house)
    house.routes.withdraw("w1")
    assert (await client.answer()).json()["error"]["code"] == "no_ready_worker"


async def test_hive_that_stops_sends_those_who_wait_away(house):
    house.announce("w1", Standing.COMING)
    client = await house.client()
    client.post(CHAT)
    await waits(house)
    house.gateway.closing = True
    assert (await client.answer()).json()["error"]["code"] == "shutting_down"


async def test_worker_that_is_still_loading_is_asked_again_later(house):
    async def loading(call):
        if len(call.stub.calls) < 3:
            call.json({"error": {"message": "Loading model"}}, status="503 Service Unavailable")
        else:
            await answer_json(call)

    worker = await house.worker(answer=loading)
    answer = await house.ask(post(CHAT))
    assert (answer.status, len(worker.calls)) == (200, 3)
    assert int(answer.headers["x-rbee-queue-ms"]) > 200
    assert len(set(worker.bodies)) == 1


async def test_worker_that_never_ends_loading_runs_into_the_limit(make_house):
    house = await make_house(queue_timeout=0.6)

    async def loading(call):
        call.json({"error": {}}, status="503 Service Unavailable")

    await house.worker(answer=loading)
    assert (await house.ask(post(CHAT))).json()["error"]["code"] == "queue_timeout"


async def test_stream_that_waits_long_gets_signs_of_life_and_then_its_events(make_house):
    house = await make_house(keepalive_after=0.2)

    async def stream(call):
        call.stream_head()
        call.chunk(b"data: 1\n\n")
        call.end()

    house.announce("w1", Standing.COMING)
    client = await house.client()
    client.post(STREAM, "/v1/chat/completions", "X-Request-Id: r1")
    head = await client.head()
    assert (head.status, head.headers["content-type"], head.headers["x-request-id"]) == (200, "text/event-stream", "r1")
    assert await client.chunk() == b": waiting\n\n"
    await house.worker("w1", answer=stream)
    rest = b""
    while data := await client.chunk():
        rest += data
    comment, event, _ = rest.split(b"\n\n")
    assert comment.startswith(b": x-rbee-worker=w1 x-rbee-queue-ms=")
    assert event == b"data: 1"
    client.send(get("/livez"))
    assert (await client.answer()).status == 200


async def test_stream_that_its_worker_is_silent_about_gets_signs_of_life_too(make_house):
    house = await make_house(keepalive_after=0.0)
    commented = asyncio.Event()

    async def silent(call):
        await commented.wait()
        call.stream_head()
        call.chunk(b"data: 1\n\n")
        call.end()

    await house.worker(answer=silent)
    client = await house.client()
    client.post(STREAM)
    assert (await client.head()).status == 200
    assert await client.chunk() == b": waiting\n\n"
    commented.set()
    assert (await client.chunk()).startswith(b": x-rbee-worker=w1")


async def test_request_that_is_no_stream_gets_no_signs_of_life(make_house):
    house = await make_house(keepalive_after=0.0, queue_timeout=0.6)
    house.announce("w1", Standing.COMING)
    assert (await house.ask(post(CHAT))).status == 503


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_failure_after_a_sign_of_life_is_an_error_event(make_house, path):
    house = await make_house(keepalive_after=0.0, queue_timeout=0.8)
    house.announce("w1", Standing.COMING)
    client = await house.client()
    client.post(STREAM, path)
    answer = await client.answer()
    assert answer.status == 200
    waiting, event = answer.body.split(b"\n\n", 1)
    assert waiting == b": waiting"
    assert b'"error"' in event
    assert event.strip().startswith(b"event: error" if path == "/v1/messages" else b"data: ")
    assert await client.rest() == b""
    assert [usage.status for usage in house.usages] == [200]


async def test_workers_refusal_after_a_sign_of_life_is_an_error_event(make_house):
    house = await make_house(keepalive_after=0.0)

    async def refuse(call):
        call.json({"error": {"message": "the prompt is too long"}}, status="400 Bad Request")

    house.announce("w1", Standing.COMING)
    client = await house.client()
    client.post(STREAM)
    await client.head()
    await client.chunk()
    await house.worker("w1", answer=refuse)
    assert json.loads((await client.chunk()).strip().removeprefix(b"data: ")) == {
        "error": {"message": "the prompt is too long"}
    }


async def test_answer_without_a_stream_after_a_sign_of_life_is_an_error_event(make_house):
    house = await make_house(keepalive_after=0.0)
    house.announce("w1", Standing.COMING)
    client = await house.client()
    client.post(STREAM)
    await client.head()
    await client.chunk()
    await house.worker("w1", answer=answer_json)
    assert b"instead of a stream" in await client.chunk()


async def test_least_loaded_ready_worker_is_asked(house):
    release = asyncio.Event()

    async def hold(call):
        await release.wait()
        await answer_json(call)

    workers = [await house.worker(f"w{number}", answer=hold) for number in range(3)]
    clients = []
    for _ in range(6):
        clients.append(await house.client())
        clients[-1].post(CHAT)
    await until(lambda: sum(len(worker.calls) for worker in workers) == 6)
    assert [len(worker.calls) for worker in workers] == [2, 2, 2]
    assert house.gateway.in_flight() == {"synthetic:a": 6}
    release.set()
    for client in clients:
        await client.answer()


async def test_client_of_a_large_body_may_leave_at_once(house):
    worker = await house.worker()
    client = await house.client()
    raw = post({**CHAT, "image": "x" * 3_000_000})
    client.send(raw)
    assert (await client.answer()).status == 200
    for _ in range(5):
        leaver = await house.client()
        leaver.send(raw)
        await leaver.writer.drain()
        leaver.leave()
    await until(lambda: len(house.gateway._connections) == 1)
    await until(lambda: house.slots_used() == 0)
    assert house.gateway.buffer.used == 0
    assert len(worker.calls) >= 1
