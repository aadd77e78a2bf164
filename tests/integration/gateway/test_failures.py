"""Workers that go away, clients that go away: asked again once, told in the API's own shape, every slot given back."""

import asyncio
import json

import pytest

from rbee.core.routing import Standing
from tests.integration.gateway.stubs import DEADLINE, answer_json, get, post, until

pytestmark = pytest.mark.anyio
CHAT = {"model": "synthetic:a", "messages": []}
STREAM = {**CHAT, "stream": True}


async def close_at_once(call):
    call.close()


async def reset_at_once(call):
    call.reset()


async def endless_head(call):
    call.send(b"HTTP/1.1 200 OK\r\n")
    for _ in range(100):
        call.send(b"X: " + b"y" * 10_000 + b"\r\n")
    await call.gone()


@pytest.mark.parametrize("broken", [close_at_once, reset_at_once, endless_head])
async def test_worker_lost_before_its_first_byte_is_replaced_once(house, broken):
    first = await house.worker("w1", answer=broken)
    second = await house.worker("w2")
    house.routes.routes["w2"].slots = 1
    house.routes.routes["w1"].slots = 8
    answer = await house.ask(post(CHAT))
    assert (answer.status, answer.headers["x-rbee-worker"]) == (200, "w2")
    assert (len(first.calls), len(second.calls)) == (1, 1)
    assert second.bodies == first.bodies
    assert [(usage.worker_id, usage.status) for usage in house.usages] == [("w2", 200)]


async def test_second_lost_worker_ends_the_request(house):
    workers = [await house.worker(f"w{number}", answer=close_at_once) for number in range(3)]
    answer = await house.ask(post(CHAT))
    assert (answer.status, answer.json()["error"]["code"]) == (502, "worker_lost")
    assert sum(len(worker.calls) for worker in workers) == 2
    assert [usage.status for usage in house.usages] == [502]


async def test_only_worker_is_asked_twice(house):
    async def second_time(call):
        if len(call.stub.calls) == 1:
            call.close()
        else:
            call.json({})

    await house.worker(answer=second_time)
    assert (await house.ask(post(CHAT))).status == 200


async def test_worker_that_does_not_listen_is_lost_too(house):
    worker = await house.worker("w1")
    await worker.stop()
    answer = await house.ask(post(CHAT))
    assert (answer.status, answer.json()["error"]["code"]) == (502, "worker_lost")


async def test_request_of_a_lost_worker_waits_for_it_where_it_comes_back(house):
    async def die(call):
        house.announce("w1", Standing.COMING)
        call.close()

    worker = await house.worker(answer=die)
    client = await house.client()
    client.post(CHAT)
    await until(lambda: house.gateway.waiting()["synthetic:a"] == 1)
    worker.answer = answer_json
    house.place(worker)
    assert (await client.answer()).status == 200


async def test_kept_connection_that_had_ended_does_not_count_as_a_lost_worker(house):
    """The worker restarts its server between two requests, and its next connection dies at once: both are survived."""

    async def end_after(call):
        if len(call.stub.calls) == 1:
            call.json({"n": 1})
        elif len(call.stub.calls) in (2, 3):
            # On the kept connection, then on the fresh one.
            call.reset()
        else:
            call.json({"n": len(call.stub.calls)})

    house.gateway.pool.stale_limit = DEADLINE
    worker = await house.worker(answer=end_after)
    client = await house.client()
    client.post(CHAT)
    assert (await client.answer()).json() == {"n": 1}
    client.post(CHAT)
    assert (await client.answer()).json() == {"n": 4}
    assert worker.connections == 3


async def test_worker_that_had_time_to_read_a_request_is_lost_though_the_connection_was_kept(house):
    async def die_after_the_first(call):
        if len(call.stub.calls) == 1:
            call.json({})
        else:
            call.reset()

    house.gateway.pool.stale_limit = 0.0
    worker = await house.worker(answer=die_after_the_first)
    client = await house.client()
    client.post(CHAT)
    assert (await client.answer()).status == 200
    client.post(CHAT)
    assert (await client.answer()).status == 502
    assert len(worker.calls) == 1 + 2


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
async def test_worker_that_refuses_the_hives_key_is_no_fault_of_the_client(house, status):
    async def refuse(call):
        call.json({"error": {"message": "Invalid API key"}}, status=status)

    worker = await house.worker(answer=refuse)
    answer = await house.ask(post(CHAT))
    assert (answer.status, answer.json()["error"]["code"]) == (502, "worker_lost")
    assert status[:3] in answer.json()["error"]["message"]
    assert len(worker.calls) == 2


async def test_control_request_on_a_kept_connection_that_had_ended_is_sent_again(house):
    async def reset_second(call):
        if len(call.stub.calls) == 2:
            call.reset()
        else:
            call.json({})

    house.gateway.pool.stale_limit = DEADLINE
    house.control.answer = reset_second
    client = await house.client()
    for _ in range(2):
        client.post({}, "/v1/workers/spawn")
        assert (await client.answer()).status == 200
    assert len(house.control.calls) == 3


async def test_worker_that_dies_in_a_stream_ends_it_with_an_error_event(house):
    async def die_in_stream(call):
        call.stream_head()
        call.chunk(b'data: {"n":1}\n\n')
        await call.writer.drain()
        call.close()

    worker = await house.worker("w1", answer=die_in_stream)
    await house.worker("w2")
    house.routes.routes["w2"].in_flight = 5
    client = await house.client()
    client.post(STREAM)
    answer = await client.answer()
    house.routes.routes["w2"].in_flight = 0
    first, event = answer.body.split(b"\n\n", 1)
    assert first == b'data: {"n":1}'
    assert json.loads(event.strip().removeprefix(b"data: "))["error"]["code"] == "worker_lost"
    assert await client.rest() == b""
    assert len(worker.calls) == 1
    assert [(usage.status, usage.stream) for usage in house.usages] == [(200, True)]


@pytest.mark.parametrize("half", [b'data: {"n":', b'data: {"n":1}\n', b"data: 1\n\nevent: x\ndata: 2"])
async def test_half_an_event_is_ended_before_the_error_event(house, half):
    async def die_in_event(call):
        call.stream_head()
        call.chunk(half)
        await call.writer.drain()
        call.close()

    await house.worker(answer=die_in_event)
    client = await house.client()
    client.post(STREAM)
    body = (await client.answer()).body
    assert body.startswith(half + b"\n\n")
    assert b"worker_lost" in body[len(half) :].strip().split(b"\n\n")[0]


async def test_anthropic_stream_ends_with_anthropics_event(house):
    async def die_in_stream(call):
        call.stream_head()
        call.chunk(b"event: ping\ndata: {}\n\n")
        await call.writer.drain()
        call.close()

    await house.worker(answer=die_in_stream)
    client = await house.client()
    client.post(STREAM, "/v1/messages")
    event = (await client.answer()).body.split(b"\n\n", 1)[1].strip()
    assert event.startswith(b"event: error\ndata: ")
    assert json.loads(event.partition(b"data: ")[2])["error"]["type"] == "api_error"


async def test_answer_that_breaks_off_is_not_passed_off_as_whole(house):
    async def break_off(call):
        call.head("Content-Type: application/json", "Content-Length: 100")
        call.send(b'{"half":')
        await call.writer.drain()
        call.close()

    await house.worker(answer=break_off)
    client = await house.client()
    client.post(CHAT)
    await client.head()
    assert await client.rest() == b'{"half":'
    assert house.slots_used() == 0


async def test_control_stream_that_breaks_off_is_not_passed_off_as_whole(house):
    async def break_off(call):
        call.stream_head()
        call.chunk(b"data: 1\n\n")
        await call.writer.drain()
        call.close()

    house.control.answer = break_off
    client = await house.client()
    client.send(get("/v1/events"))
    await client.head()
    assert b"0\r\n\r\n" not in await client.rest()


async def test_client_that_leaves_a_stream_ends_it_at_the_worker(house):
    gone = asyncio.Event()

    async def stream(call):
        call.stream_head()
        call.chunk(b"data: 1\n\n")
        await call.gone()
        gone.set()

    await house.worker(answer=stream)
    client = await house.client()
    client.post(STREAM)
    await client.head()
    await client.chunk()
    assert house.gateway.in_flight() == {"synthetic:a": 1}
    client.leave()
    async with asyncio.timeout(5):
        await gone.wait()
    await until(lambda: house.slots_used() == 0)
    assert [usage.status for usage in house.usages] == [499]


@pytest.mark.parametrize("how", ["reset", "half-close"])
async def test_client_that_leaves_before_the_answer_ends_the_request_at_the_worker(house, how):
    gone = asyncio.Event()

    async def hold(call):
        await call.gone()
        gone.set()

    worker = await house.worker(answer=hold)
    client = await house.client()
    client.post(CHAT)
    await until(lambda: worker.calls)
    if how == "reset":
        client.leave()
    else:
        client.writer.write_eof()
    async with asyncio.timeout(5):
        await gone.wait()
    await until(lambda: house.slots_used() == 0)
    assert len(worker.calls) == 1


async def test_client_that_leaves_a_control_request_ends_it_there(house):
    gone = asyncio.Event()

    async def hold(call):
        await call.gone()
        gone.set()

    house.control.answer = hold
    client = await house.client()
    client.send(get("/v1/workers"))
    await until(lambda: house.control.calls)
    client.leave()
    async with asyncio.timeout(5):
        await gone.wait()


async def test_worker_that_says_nothing_is_given_up_where_a_limit_is_set(make_house):
    house = await make_house(stall_timeout=0.3)

    async def hold(call):
        await call.gone()

    await house.worker("w1", answer=hold)
    answer = await house.ask(post(CHAT))
    assert answer.status == 502
    assert "0.3 s" in answer.json()["error"]["message"]


async def test_stream_that_stalls_ends_with_an_error_event(make_house):
    house = await make_house(stall_timeout=0.3)

    async def stall(call):
        call.stream_head()
        call.chunk(b"data: 1\n\n")
        await call.gone()

    await house.worker(answer=stall)
    client = await house.client()
    client.post(STREAM)
    assert b"worker_lost" in (await client.answer()).body


async def test_withdrawn_workers_idle_connections_are_closed(house):
    worker = await house.worker()
    await house.ask(post(CHAT))
    assert worker.open == 1
    house.routes.withdraw("w1")
    await until(lambda: worker.open == 0)


async def test_idle_upstream_connections_are_closed_before_the_upstream_does(house):
    worker = await house.worker()
    client = await house.client()
    client.post(CHAT)
    await client.answer()
    upstream = next(iter(house.gateway.pool._open))
    house.gateway.pool.sweep(upstream.idle_since + 3.9)
    assert house.gateway.pool.idle(("127.0.0.1", worker.port)) == 1
    house.gateway.pool.sweep(upstream.idle_since + 4.0)
    await until(lambda: worker.open == 0)


async def test_usage_tells_what_the_answer_told(house):
    async def answer(call):
        call.json(
            {"usage": {"prompt_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 8}}}
        )

    await house.worker(answer=answer)
    await house.ask(post(CHAT, "/v1/completions", "X-Request-Id: r1"))
    (usage,) = house.usages
    assert (usage.request_id, usage.model, usage.worker_id, usage.endpoint) == (
        "r1",
        "synthetic:a",
        "w1",
        "/v1/completions",
    )
    assert (usage.prompt_tokens, usage.generated_tokens, usage.cached_tokens) == (12, 3, 8)
    assert 0 < usage.overhead_seconds <= usage.first_byte_seconds <= usage.duration_seconds


async def test_close_waits_for_requests_under_way_and_ends_idle_connections(house):
    release = asyncio.Event()

    async def hold(call):
        await release.wait()
        call.json({})

    worker = await house.worker(answer=hold)
    busy, idle = await house.client(), await house.client()
    busy.post(CHAT)
    idle.send(get("/livez"))
    await idle.answer()
    await until(lambda: worker.calls)
    closing = asyncio.create_task(house.gateway.close(30.0))
    assert await idle.rest() == b""
    assert not closing.done()
    release.set()
    assert (await busy.answer()).status == 200
    assert await busy.rest() == b""
    await closing
    with pytest.raises(ConnectionRefusedError):
        await house.client()


async def test_close_aborts_what_does_not_end(house):
    async def hold(call):
        await call.gone()

    worker = await house.worker(answer=hold)
    client = await house.client()
    client.post(CHAT)
    await until(lambda: worker.calls)
    await house.gateway.close(0.1)
    assert await client.rest() == b""
    await until(lambda: worker.open == 0)
    assert house.slots_used() == 0
