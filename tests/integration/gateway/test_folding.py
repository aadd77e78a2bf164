"""A client that wants its answer in one piece, and a worker that is asked for a stream in its place."""

import asyncio
import json

import pytest

from rbee.core.routing import Route, Standing
from tests.integration.gateway.stubs import Stub, post, until

pytestmark = pytest.mark.anyio
CHAT = {"model": "synthetic:a", "messages": []}
WISHED = {"stream": True, "stream_options": {"include_usage": True}, "return_progress": True}
FIRST = b'data: {"choices":[{"index":0,"finish_reason":null,"delta":{"role":"assistant","content":"Hi"}}],"id":"x"}\n\n'
LAST = (
    b'data: {"choices":[{"index":0,"finish_reason":"stop","delta":{}}],"id":"x"}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
)
REFUSAL = b'data: {"x":1}'
ANSWER = {
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi"}}],
    "id": "x",
    "object": "chat.completion",
    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
}


async def worker(house, answer, name="w1"):
    """One whose engine does not notice a client that leaves before its answer."""
    stub = Stub(name, answer)
    await stub.listen()
    house.stubs.append(stub)
    house.routes.publish(
        Route(name, "synthetic:a", standing=Standing.READY, host="127.0.0.1", port=stub.port, key="k", folds=True)
    )
    return stub


async def whole(call):
    call.stream_head()
    for start in range(0, len(FIRST + LAST), 50):
        call.chunk((FIRST + LAST)[start : start + 50])
    call.end()


async def begun(call):
    call.stream_head()
    call.chunk(FIRST)
    await call.gone()


async def cut(call):
    call.stream_head()
    call.chunk(FIRST)
    call.close()


async def too_short(call):
    call.stream_head()
    call.chunk(FIRST)
    call.end()


async def test_a_stream_becomes_one_answer(house):
    stub = await worker(house, whole)
    answer = await house.ask(post(CHAT))
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("application/json")
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert answer.headers["x-rbee-worker"] == "w1"
    assert answer.json() == ANSWER
    assert json.loads(stub.bodies[0]) == {**CHAT, **WISHED}
    await until(lambda: house.usages)
    usage = house.usages[0]
    assert (usage.stream, usage.prompt_tokens, usage.generated_tokens) == (False, 3, 2)


async def test_a_stream_that_the_client_asked_for_stays_one(house):
    stub = await worker(house, whole)
    answer = await house.ask(post({**CHAT, "stream": True}))
    assert answer.body == FIRST + LAST
    assert json.loads(stub.bodies[0]) == {**CHAT, "stream": True}


async def test_other_workers_are_asked_as_the_client_asked(house):
    stub = await house.worker("w1", answer=whole)
    await house.ask(post(CHAT))
    assert json.loads(stub.bodies[0]) == CHAT


async def test_an_error_before_the_stream_passes_as_it_is(house):
    async def refuse(call):
        call.json({"error": {"code": 400, "message": "too long"}}, "400 Bad Request")

    await worker(house, refuse)
    answer = await house.ask(post(CHAT))
    assert (answer.status, answer.json()) == (400, {"error": {"code": 400, "message": "too long"}})


async def test_an_error_that_calls_itself_a_stream_passes_too(house):
    async def refuse(call):
        call.head("Content-Type: text/event-stream", "Content-Length: 13", status="400 Bad Request")
        call.send(REFUSAL)

    await worker(house, refuse)
    answer = await house.ask(post(CHAT))
    assert (answer.status, answer.body) == (400, REFUSAL)


async def test_an_error_in_the_stream_has_its_own_status(house):
    async def fail(call):
        call.stream_head()
        call.chunk(FIRST)
        call.chunk(b'data: {"error":{"code":500,"message":"no"}}\n\n')
        call.end()

    await worker(house, fail)
    answer = await house.ask(post(CHAT))
    assert (answer.status, answer.json()) == (500, {"error": {"code": 500, "message": "no"}})


async def test_a_client_that_leaves_ends_the_stream_at_its_worker(house):
    stub = await worker(house, begun)
    client = await house.client()
    client.post(CHAT)
    await until(lambda: house.gateway.buffer.used > len(json.dumps(CHAT)))
    client.leave()
    await until(lambda: stub.open == 0)
    await until(lambda: house.usages)
    assert house.usages[0].status == 499
    assert house.gateway.buffer.used == 0


@pytest.mark.parametrize("lose", [cut, too_short])
async def test_a_worker_lost_in_the_middle_is_lost_before_the_first_byte(house, lose):
    async def once(call):
        await (lose if len(first.calls) == 1 else whole)(call)

    first = await worker(house, once)
    answer = await house.ask(post(CHAT))
    assert (answer.status, answer.json()) == (200, ANSWER)
    assert len(first.calls) == 2
    await until(lambda: house.usages)
    assert house.usages[0].generated_tokens == 2


async def test_a_worker_lost_twice_is_told(house):
    await worker(house, cut)
    answer = await house.ask(post(CHAT))
    assert answer.status == 502


async def test_an_answer_that_the_buffer_does_not_hold_is_refused(make_house):
    house = await make_house(buffer_limit=2000)

    async def endless(call):
        call.stream_head()
        for _ in range(100):
            call.chunk(FIRST)
        await call.gone()

    stub = await worker(house, endless)
    answer = await house.ask(post(CHAT))
    assert (answer.status, answer.json()["error"]["code"]) == (503, "buffer_full")
    await until(lambda: stub.open == 0)


async def test_nothing_is_sent_before_all_is_there(make_house):
    house = await make_house(keepalive_after=0.05, idle_timeout=0.3)
    go_on = asyncio.Event()

    async def slow(call):
        call.stream_head()
        call.chunk(FIRST)
        await go_on.wait()
        call.chunk(LAST)
        call.end()

    await worker(house, slow)
    client = await house.client()
    client.post(CHAT)
    # Longer than a stream goes without a comment, and than a client may be idle between requests.
    await until(lambda: any(seen.age_seconds > 1.0 for seen in house.gateway.log.underway()))
    go_on.set()
    answer = await client.answer()
    assert (answer.status, answer.json()) == (200, ANSWER)


async def test_a_worker_that_falls_silent_is_asked_again_once(make_house):
    house = await make_house(stall_timeout=0.3)
    stub = await worker(house, begun)
    answer = await house.ask(post(CHAT))
    assert (answer.status, answer.json()["error"]["code"]) == (502, "worker_lost")
    assert len(stub.calls) == 2


async def test_one_that_is_cancelled_is_told_so_and_leaves_its_worker(house):
    stub = await worker(house, begun)
    client = await house.client()
    client.post(CHAT, "/v1/chat/completions", "X-Request-Id: mine")
    await until(lambda: house.gateway.buffer.used > len(json.dumps(CHAT)))
    house.gateway.log.cancel("mine")
    answer = await client.answer()
    assert (answer.status, answer.json()["error"]["code"]) == (410, "request_cancelled")
    await until(lambda: stub.open == 0)


async def test_a_client_of_the_old_version_gets_one_answer_and_its_end(house):
    await worker(house, whole)
    answer = await house.ask(post(CHAT).replace(b"HTTP/1.1", b"HTTP/1.0", 1), to_end=True)
    assert "transfer-encoding" not in answer.headers
    assert answer.json() == ANSWER


@pytest.mark.parametrize("said", [b"null", b"false"])
async def test_what_a_client_says_of_a_stream_that_it_does_not_want_is_replaced(house, said):
    stub = await worker(house, whole)
    body = b'{"model":"synthetic:a","messages":[],"stream":%b,"stream_options":{"include_usage":false}}' % said
    answer = await house.ask(post(body))
    assert answer.json() == ANSWER
    assert json.loads(stub.bodies[0]) == {**CHAT, **WISHED}


async def test_the_engines_name_and_the_stream_are_put_in_together(house):
    stub = await worker(house, whole)
    route = house.routes.routes["w1"]
    route.served = ("m",)
    await house.ask(post(CHAT))
    assert json.loads(stub.bodies[0])["model"] == "m"
    assert json.loads(stub.bodies[0])["stream"] is True
