"""What goes through: answers in every framing, both ways, on connections that are used again."""

import asyncio
import json
import socket

import pytest

from tests.integration.gateway.stubs import Pouring, get, post, until

pytestmark = pytest.mark.anyio
CHAT = {"model": "synthetic:a", "messages": []}
STREAM = {**CHAT, "stream": True}


async def test_json_answer_comes_from_the_worker_with_our_headers(house):
    worker = await house.worker()
    answer = await house.ask(post(CHAT, "/v1/chat/completions", "X-Request-Id: mine", "X-Rbee-Principal: admin"))
    assert answer.status == 200
    assert answer.json()["body"] == json.dumps(CHAT)
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["x-rbee-worker"] == "w1"
    assert answer.headers["x-rbee-queue-ms"] == "0"
    request = worker.calls[0].request
    assert request.headers["authorization"] == "Bearer engine-key"
    assert request.headers["x-request-id"] == "mine"
    assert "x-rbee-principal" not in request.headers


async def test_body_bytes_are_not_changed(house):
    worker = await house.worker()
    body = b' {"model" :\t"synthetic:a", "model":"synthetic:a", "x": "\\u00e9\xc3\xa9" }\n'
    await house.ask(post(body))
    assert worker.bodies == [body]


async def test_large_bodies_go_both_ways(house):
    worker = await house.worker()
    body = json.dumps({**CHAT, "image": "x" * 5_000_000}).encode()
    answer = await house.ask(post(body))
    assert worker.bodies == [body]
    assert answer.json()["body"].encode("latin-1") == body


@pytest.mark.parametrize(
    "path",
    ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank", "/v1/responses", "/v1/messages",
     "/v1/messages/count_tokens", "/v1/messages?beta=true"],
)  # fmt: skip
async def test_every_inference_path_goes_to_a_worker(house, path):
    await house.worker()
    assert (await house.ask(post(CHAT, path))).json()["path"] == path
    assert not house.control.calls


@pytest.mark.parametrize(
    "raw", [get("/v1/workers"), get("/"), post({}, "/v1/workers/spawn"), get("/v1/a", method="DELETE")]
)
async def test_everything_else_goes_to_the_control_api(house, raw):
    await house.worker()
    answer = await house.ask(raw)
    assert answer.json()["by"] == "control"
    assert "x-rbee-worker" not in answer.headers
    assert answer.headers["x-request-id"] == house.control.calls[0].request.headers["x-request-id"]


async def test_chunks_of_a_stream_arrive_one_by_one(house):
    step = asyncio.Semaphore(0)

    async def stream(call):
        call.stream_head()
        for i in range(3):
            await step.acquire()
            call.chunk(b"data: %d\n\n" % i)
        await step.acquire()
        call.end()

    await house.worker(answer=stream)
    client = await house.client()
    client.post(STREAM)
    assert (await client.head()).headers["transfer-encoding"] == "chunked"
    for i in range(3):
        step.release()
        assert await client.chunk() == b"data: %d\n\n" % i
    step.release()
    assert await client.chunk() == b""


async def test_event_stream_of_the_control_api_is_relayed_until_the_client_leaves(house):
    gone = asyncio.Event()

    async def events(call):
        call.stream_head()
        call.chunk(b"id: 1\ndata: {}\n\n")
        await call.gone()
        gone.set()

    house.control.answer = events
    client = await house.client()
    client.send(get("/v1/events"))
    await client.head()
    assert await client.chunk() == b"id: 1\ndata: {}\n\n"
    client.leave()
    async with asyncio.timeout(5):
        await gone.wait()


async def test_connections_are_used_again_on_both_sides(house):
    worker = await house.worker()
    client = await house.client()
    for _ in range(5):
        client.post(CHAT)
        assert (await client.answer()).status == 200
        client.send(get("/v1/workers"))
        assert (await client.answer()).status == 200
    assert (worker.connections, house.control.connections) == (1, 1)


async def test_pipelined_requests_are_answered_in_order(house):
    async def slow(call):
        await asyncio.sleep(0.01)
        call.json({"body": call.request.body.decode()})

    await house.worker(answer=slow)
    client = await house.client()
    bodies = [json.dumps({**CHAT, "n": n}) for n in ("first", 2, 3)]
    client.send(b"".join(post(body.encode()) for body in bodies) + get("/livez") + get("/v1/workers"))
    assert [(await client.answer()).json()["body"] for _ in bodies] == bodies
    assert (await client.answer()).json() == {"status": "alive"}
    assert (await client.answer()).json()["by"] == "control"


async def test_client_that_pipelines_far_ahead_is_read_no_further(house):
    release = asyncio.Event()

    async def hold(call):
        await release.wait()
        call.json({})

    await house.worker(answer=hold)
    client = await house.client()
    client.post(CHAT)
    many = 20_000
    client.send(get("/livez") * many)
    await until(lambda: house.slots_used() == 1)
    connection = next(iter(house.gateway._connections))
    await until(lambda: connection._reading_paused)
    assert len(connection._buffer) < 64 * 1024 + 512 * 1024
    release.set()
    for _ in range(many + 1):
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("cuts", [[1] * 200, [40, 3, 90, 1], [100_000]], ids=["bytes", "pieces", "whole"])
async def test_chunked_request_is_put_together(house, cuts):
    worker = await house.worker()
    body = json.dumps(CHAT).encode()
    chunks = b"".join(b"%x;x=y\r\n%b\r\n" % (1, body[i : i + 1]) for i in range(len(body)))
    raw = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nX-Trailer: y\r\n\r\n" + get("/livez")
    )
    client = await house.client()
    for size in cuts:
        client.send(raw[:size])
        raw = raw[size:]
        await asyncio.sleep(0)
    client.send(raw)
    assert (await client.answer()).json()["body"] == body.decode()
    assert (await client.answer()).json() == {"status": "alive"}
    assert worker.calls[0].request.headers["content-length"] == str(len(body))
    assert "x-trailer" not in worker.calls[0].request.headers


async def test_requests_that_come_byte_by_byte_are_read(house):
    worker = await house.worker()
    client = await house.client()
    client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    raw = b"\r\n" + post(CHAT) + b"\r\n" + get("/livez")
    for at in range(len(raw)):
        client.send(raw[at : at + 1])
        await asyncio.sleep(0.0005)
    assert (await client.answer()).status == 200
    assert (await client.answer()).json() == {"status": "alive"}
    assert worker.bodies == [json.dumps(CHAT).encode()]


async def test_expected_100_is_given_before_the_body(house):
    await house.worker()
    head, _, body = post(CHAT, "/v1/completions", "Expect: 100-continue").partition(b"\r\n\r\n")
    client = await house.client()
    client.send(head + b"\r\n\r\n")
    assert (await client.head()).status == 100
    client.send(body)
    assert (await client.answer()).status == 200


async def test_refused_request_gets_no_100(house):
    head, _, _ = post(CHAT, "/v1/completions", "Expect: 100-continue", "Origin: http://evil").partition(b"\r\n\r\n")
    answer = await house.ask(head + b"\r\n\r\n")
    assert answer.status == 403
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("path", ["/v1/workers", "/livez", "/readyz", "/v1/health"])
async def test_answer_to_head_has_the_length_and_no_body(house, path):
    client = await house.client()
    for _ in range(2):
        client.send(get(path, method="HEAD"))
        answer = await client.answer(bodyless=True)
        assert int(answer.headers["content-length"]) > 0
    client.send(get("/livez"))
    assert (await client.answer()).json() == {"status": "alive"}


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_answers_that_have_no_body(house, status):
    async def nothing(call):
        call.head(status=status)

    house.control.answer = nothing
    client = await house.client()
    for _ in range(2):
        client.send(get("/v1/a"))
        answer = await client.answer(bodyless=True)
        assert answer.start == f"HTTP/1.1 {status}"
        assert "transfer-encoding" not in answer.headers
    assert house.control.connections == 1


async def test_interim_answers_are_skipped(house):
    async def early(call):
        call.head(status="100 Continue")
        call.head("Link: </a>", status="103 Early Hints")
        call.json({"ok": True})

    house.control.answer = early
    client = await house.client()
    for _ in range(2):
        client.send(get("/v1/a"))
        answer = await client.answer()
        assert answer.json() == {"ok": True}
        assert "link" not in answer.headers


async def test_http_1_0_client_gets_a_stream_that_ends_with_the_connection(house):
    async def stream(call):
        call.stream_head()
        call.chunk(b"data: 1\n\n")
        call.chunk(b"data: 2\n\n")
        call.end()

    await house.worker(answer=stream)
    client = await house.client()
    client.send(post(STREAM).replace(b"HTTP/1.1", b"HTTP/1.0"))
    answer = await client.answer(to_end=True)
    assert answer.headers["connection"] == "close"
    assert "transfer-encoding" not in answer.headers
    assert answer.body == b"data: 1\n\ndata: 2\n\n"


async def test_http_1_0_client_may_keep_its_connection(house):
    client = await house.client()
    for _ in range(2):
        client.send(b"GET /v1/a HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n")
        answer = await client.answer()
        assert answer.headers["connection"] == "keep-alive"
    client.send(b"GET /v1/a HTTP/1.0\r\n\r\n")
    assert (await client.answer()).headers["connection"] == "close"
    assert await client.rest() == b""


async def test_client_that_asks_to_close_is_closed_after_its_answer(house):
    client = await house.client()
    client.send(get("/v1/a", "Connection: close"))
    assert (await client.answer()).headers["connection"] == "close"
    assert await client.rest() == b""


async def test_no_delay_is_set_on_both_sides(house):
    release = asyncio.Event()

    async def hold(call):
        await release.wait()
        call.json({})

    await house.worker(answer=hold)
    client = await house.client()
    client.post(CHAT)
    await until(lambda: house.slots_used() == 1 and house.stubs[0].calls)
    sides = [next(iter(house.gateway._connections))._transport, next(iter(house.gateway.pool._open))._transport]
    for transport in sides:
        assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    release.set()
    await client.answer()


async def test_slow_client_slows_its_worker_down_and_memory_stays_bounded(house):
    pouring = Pouring()
    await house.worker(answer=pouring)
    client = await house.client()
    client.writer.transport.pause_reading()
    client.post(STREAM)
    await until(lambda: any(upstream.paused for upstream in house.gateway.pool._open))
    before = -1
    while before != pouring.sent:
        before = pouring.sent
        await asyncio.sleep(0.2)
    connection = next(iter(house.gateway._connections))
    assert connection._transport.get_write_buffer_size() < 2 * 1024 * 1024
    assert pouring.sent < 60_000_000
    client.writer.transport.resume_reading()
    await client.head()
    total = 0
    while data := await client.chunk():
        total += len(data)
    assert total == 2000 * 65536


async def test_stream_of_many_chunks_comes_whole(house):
    async def stream(call):
        call.stream_head()
        for i in range(5000):
            call.chunk(b"data: %d\n\n" % i)
            if i % 7 == 0:
                await call.writer.drain()
                await asyncio.sleep(0)
        call.end()

    await house.worker(answer=stream)
    client = await house.client()
    client.post(STREAM)
    assert (await client.answer()).body == b"".join(b"data: %d\n\n" % i for i in range(5000))
