"""Pages of allowed origins read every answer, refusals and streams included; pages of others read none."""

import pytest

from rbee.core.auth import AuthPolicy, Principal, Role, digest
from rbee.core.routing import Standing
from tests.integration.gateway.stubs import get, post, until

pytestmark = pytest.mark.anyio
ORIGIN = "https://chat.example"
LINE = f"Origin: {ORIGIN}"
CHAT = {"model": "synthetic:a"}
STREAM = {**CHAT, "stream": True}


@pytest.fixture
async def cors_house(make_house):
    return await make_house(
        AuthPolicy({digest("client-key-012345"): Principal(Role.CLIENT, "page")}, b"secret"),
        cors_origins=(ORIGIN,),
        queue_limit=1,
        max_body=1000,
    )


KEY = "Authorization: Bearer client-key-012345"
CHUNKED = get("/v1/a", LINE, KEY, "Content-Type: application/json", "Transfer-Encoding: chunked")
REFUSED = {
    "no key": (post(CHAT, "/v1/completions", LINE), 401),
    "no such model": (post({"model": "b"}, "/v1/completions", LINE, KEY), 404),
    "wrong method": (get("/v1/completions", LINE, KEY), 405),
    "large body": (post(b"x" * 1001, "/v1/completions", LINE, KEY), 413),
    "broken chunk": (CHUNKED + b"x\r\n", 400),
    "body of no type": (post(CHAT, "/v1/completions", LINE, KEY).replace(b"application/json", b"text/plain"), 415),
    "senseless body": (post(b"{", "/v1/completions", LINE, KEY), 400),
    "no field": (post({}, "/v1/completions", LINE, KEY), 422),
    "no worker": (post({"model": "synthetic:out"}, "/v1/completions", LINE, KEY), 503),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "status"), REFUSED.values(), ids=REFUSED)
async def test_page_of_an_allowed_origin_reads_why_it_was_refused(cors_house, raw, status):
    cors_house.announce("w9", Standing.OUT, "synthetic:out")
    answer = await cors_house.ask(raw)
    assert answer.status == status
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["vary"] == "origin"
    assert "x-request-id" in answer.headers["access-control-expose-headers"]


async def test_page_of_an_allowed_origin_reads_that_it_was_too_slow(make_house):
    house = await make_house(cors_origins=(ORIGIN,), idle_timeout=0.3)
    answer = await house.ask(post(CHAT, "/v1/completions", LINE)[:-1])
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (408, ORIGIN)


async def test_page_of_an_allowed_origin_reads_when_to_come_back(cors_house):
    cors_house.announce("w1", Standing.COMING)
    first = await cors_house.client()
    first.post(CHAT, "/v1/completions", LINE, KEY)
    await until(lambda: cors_house.gateway.waiting()["synthetic:a"] == 1)
    answer = await cors_house.ask(post(CHAT, "/v1/completions", LINE, KEY))
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (429, ORIGIN)
    assert "retry-after" in answer.headers["access-control-expose-headers"]
    assert int(answer.headers["retry-after"]) >= 1


async def test_page_of_an_allowed_origin_reads_a_stream_and_a_lost_worker(cors_house):
    async def stream(call):
        call.stream_head()
        call.chunk(b"data: 1\n\n")
        call.close()

    await cors_house.worker(answer=stream)
    client = await cors_house.client()
    client.post(STREAM, "/v1/completions", LINE, KEY)
    answer = await client.answer()
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert b"worker_lost" in answer.body


async def test_what_a_worker_says_of_origins_is_not_believed(cors_house):
    async def open_to_all(call):
        call.head("Access-Control-Allow-Origin: *", "Access-Control-Allow-Credentials: true", "Content-Length: 0")

    await cors_house.worker(answer=open_to_all)
    answer = await cors_house.ask(post(CHAT, "/v1/completions", LINE, KEY))
    assert answer.raw_head.lower().count(b"access-control-allow-origin") == 1
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "access-control-allow-credentials" not in answer.headers


async def test_origin_of_one_request_is_not_that_of_the_next(cors_house):
    client = await cors_house.client()
    client.send(get("/livez", LINE) + get("/livez") + get("/livez", "Origin: https://evil.example"))
    first, second, third = [await client.answer() for _ in range(3)]
    assert first.headers["access-control-allow-origin"] == ORIGIN
    assert "access-control-allow-origin" not in second.headers
    assert second.headers["vary"] == "origin"
    assert third.status == 403
    assert "access-control-allow-origin" not in third.headers


async def test_origin_of_one_request_is_not_that_of_a_next_one_that_cannot_be_read(cors_house):
    client = await cors_house.client()
    client.send(get("/livez", LINE) + b"GET / HTTP/9\r\n\r\n")
    assert (await client.answer()).status == 200
    broken = await client.answer()
    assert broken.status == 400
    assert "access-control-allow-origin" not in broken.headers


async def test_host_of_somebody_else_is_not_read_by_an_allowed_page_either(cors_house):
    """A name that an attacker made to point here."""
    answer = await cors_house.ask(get("/livez", LINE, host="evil.example"))
    assert answer.status == 421
    assert "access-control-allow-origin" not in answer.headers


async def test_without_allowed_origins_nothing_is_said_of_them(house):
    answer = await house.ask(get("/livez"))
    assert "vary" not in answer.headers
    assert not any(name.startswith("access-control") for name in answer.headers)
