"""Before the first sign of life a failure has its own status; after it every failure is an error event."""

import json

import pytest

from rbee.core.routing import Standing
from tests.integration.gateway.stubs import until

pytestmark = pytest.mark.anyio
STREAM = {"model": "synthetic:a", "messages": [], "stream": True}
PATHS = ["/v1/chat/completions", "/v1/responses", "/v1/messages"]


async def timeout(house):
    """Nothing comes: the wait runs out by itself."""


async def losses(house):
    async def die(call):
        call.close()

    await house.worker(answer=die)


async def closing(house):
    house.gateway.closing = True


async def removal(house):
    house.routes.withdraw("w1")


async def failed_load(house):
    house.announce("w1", Standing.OUT, message="the load failed")


async def refusal(house):
    async def refuse(call):
        call.json({"error": {"code": "of_the_engine", "message": "too long"}}, status="400 Bad Request")

    await house.worker(answer=refuse)


FAILURES = [
    (timeout, 503, "queue_timeout", "overloaded_error"),
    (losses, 502, "worker_lost", "api_error"),
    (closing, 503, "shutting_down", "overloaded_error"),
    (removal, 503, "no_ready_worker", "overloaded_error"),
    (failed_load, 503, "no_ready_worker", "overloaded_error"),
    (refusal, 400, "of_the_engine", None),
]
EACH = pytest.mark.parametrize(("fail", "status", "code", "kind"), FAILURES, ids=[f[0].__name__ for f in FAILURES])


async def waiting_client(house, path):
    house.announce("w1", Standing.COMING)
    client = await house.client()
    client.post(STREAM, path)
    await until(lambda: house.gateway.waiting() == {"synthetic:a": 1})
    return client


def check(error, path, code, kind):
    """In the shape of the path's API; what an engine says is passed on as it is."""
    if path == "/v1/messages" and kind is not None:
        assert (error["type"], error["error"]["type"]) == ("error", kind)
    else:
        assert error["error"]["code"] == code


@EACH
@pytest.mark.parametrize("path", PATHS)
async def test_failure_before_the_first_sign_of_life_has_its_own_status(make_house, fail, status, code, kind, path):
    house = await make_house(keepalive_after=60.0, queue_timeout=0.3 if fail is timeout else 60.0)
    client = await waiting_client(house, path)
    await fail(house)
    answer = await client.answer()
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    check(answer.json(), path, code, kind)
    assert [usage.status for usage in house.usages] == [status]


@EACH
@pytest.mark.parametrize("path", PATHS)
async def test_failure_after_a_sign_of_life_is_an_event_and_the_end(make_house, fail, status, code, kind, path):
    house = await make_house(keepalive_after=0.0, queue_timeout=1.0 if fail is timeout else 60.0)
    client = await waiting_client(house, path)
    head = await client.head()
    assert (head.status, head.headers["content-type"]) == (200, "text/event-stream")
    assert await client.chunk() == b": waiting\n\n"
    await fail(house)
    event = await client.chunk()
    lines = event.strip().split(b"\n")
    assert lines[:-1] == ([b"event: error"] if path == "/v1/messages" else [])
    check(json.loads(lines[-1].removeprefix(b"data: ")), path, code, kind)
    assert await client.rest() == b"0\r\n\r\n"
    assert [usage.status for usage in house.usages] == [200]
