"""What is refused, with which status and in which shape, and what the connection does then."""

import asyncio
import random

import pytest

from rbee.core.auth import AuthPolicy, Principal, Role, digest
from rbee.core.model_ref import BUILT_IN_ALIASES
from rbee.core.routing import Standing
from tests.integration.gateway.stubs import get, post, until

pytestmark = pytest.mark.anyio
CHAT = {"model": "synthetic:a"}
KEYS = AuthPolicy(
    {digest("admin-key-0123456"): Principal(Role.ADMIN), digest("metrics-key-012345"): Principal(Role.METRICS, "prom")},
    b"secret",
)


async def test_health_is_answered_without_the_control_api(make_house):
    house = await make_house(KEYS)
    house.gateway.control_up = False
    assert (await house.ask(get("/livez"))).json() == {"status": "alive"}
    health = (await house.ask(get("/v1/health"))).json()
    assert health == {"status": "alive", "version": "1.2.3", "api_version": "v1"}
    assert (await house.ask(get("/readyz"))).status == 200
    house.gateway.ready_problem = lambda: "adopting workers"
    answer = await house.ask(get("/readyz"))
    assert (answer.status, answer.json()["reason"]) == (503, "adopting workers")
    assert not house.control.calls


async def test_health_takes_get_and_head_only(house):
    answer = await house.ask(get("/livez", method="DELETE"))
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


async def test_control_api_that_is_not_up_yet_is_unavailable(house):
    house.gateway.control_up = False
    answer = await house.ask(get("/v1/workers"))
    assert (answer.status, answer.json()["error"]["code"]) == (503, "control_unavailable")
    assert int(answer.headers["retry-after"]) >= 1


async def test_control_api_that_is_gone_is_unavailable(house):
    await house.ask(get("/v1/workers"))
    await house.control.stop()
    assert (await house.ask(get("/v1/workers"))).status == 503


async def test_other_method_on_an_inference_path(house):
    answer = await house.ask(get("/v1/chat/completions"))
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


async def test_method_that_the_control_api_cannot_parse_is_refused_in_our_shape(house):
    answer = await house.ask(get("/v1/workers", method="FOO"))
    assert (answer.status, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    assert "'FOO'" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "raw",
    [get(host="evil.example"), get("/v1/workers", host="evil.example"), post(CHAT).replace(b"localhost", b"evil")],
)
async def test_foreign_host_is_misdirected(house, raw):
    assert (await house.ask(raw)).status == 421


async def test_allowed_host_is_let_in(make_house):
    house = await make_house(allowed_hosts=("hive.lan",))
    assert (await house.ask(get(host="hive.lan:9200"))).status == 200


@pytest.mark.parametrize(
    "raw", [get("/livez", "Origin: http://evil"), post(CHAT, "/v1/completions", "Origin: http://evil")]
)
async def test_page_of_a_foreign_origin_is_forbidden(house, raw):
    answer = await house.ask(raw)
    assert answer.status == 403
    assert not any(name.startswith("access-control") for name in answer.headers)


async def test_page_of_an_allowed_origin_may_ask_and_read(make_house):
    house = await make_house(cors_origins=("https://chat.example",))
    await house.worker()
    lines = (
        "Origin: https://chat.example",
        "Access-Control-Request-Method: POST",
        "Access-Control-Request-Headers: x-a",
    )
    answer = await house.ask(get("/v1/chat/completions", *lines, method="OPTIONS"), bodyless=True)
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == "https://chat.example"
    assert answer.headers["access-control-allow-headers"] == "x-a"
    for raw in (
        post(CHAT, "/v1/completions", lines[0]),
        post({}, "/v1/completions", lines[0]),
        get("/livez", lines[0]),
    ):
        assert (await house.ask(raw)).headers["access-control-allow-origin"] == "https://chat.example"


async def test_options_without_configured_origins_go_on_like_any_request(house):
    assert (await house.ask(get("/v1/workers", method="OPTIONS"))).json()["by"] == "control"
    assert (await house.ask(get("/v1/completions", method="OPTIONS"))).status == 405


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/workers/spawn"])
async def test_body_that_is_not_declared_as_json_is_refused(house, path):
    raw = post(CHAT, path).replace(b"application/json", b"text/plain")
    assert (await house.ask(raw)).status == 415


@pytest.mark.parametrize(
    ("lines", "status", "code"),
    [
        ((), 401, "unauthorized"),
        (("Authorization: Bearer wrong",), 401, "unauthorized"),
        (("Authorization: Basic admin-key-0123456",), 401, "unauthorized"),
        (("X-Api-Key: wrong",), 401, "unauthorized"),
        (("Authorization: Bearer ",), 401, "unauthorized"),
        (("Authorization: Bearer metrics-key-012345",), 403, "forbidden"),
    ],
)
async def test_key_that_may_not_ask_models(make_house, lines, status, code):
    house = await make_house(KEYS)
    await house.worker()
    answer = await house.ask(post(CHAT, "/v1/completions", *lines))
    assert (answer.status, answer.json()["error"]["code"]) == (status, code)
    assert ("www-authenticate" in answer.headers) is (status == 401)
    assert not house.usages


@pytest.mark.parametrize(
    "line",
    [
        "Authorization: Bearer admin-key-0123456",
        "authorization: bearer admin-key-0123456",
        "X-API-Key: admin-key-0123456",
        "Authorization: Bearer\r\nX-API-Key: admin-key-0123456",
    ],
)
async def test_key_that_may(make_house, line):
    house = await make_house(KEYS)
    worker = await house.worker()
    assert (await house.ask(post(CHAT, "/v1/completions", line))).status == 200
    assert b"admin-key" not in worker.calls[0].request.raw_head


@pytest.mark.parametrize("line", ["X: y", "Authorization: Bearer wrong", "X-Api-Key: wrong"])
async def test_stranger_is_refused_by_the_head_of_a_control_request(make_house, line):
    house = await make_house(KEYS)
    head = post({}, "/v1/workers/spawn", line).partition(b"\r\n\r\n")[0]
    answer = await house.ask(head + b"\r\n\r\n")
    assert (answer.status, answer.headers["connection"]) == (401, "close")
    assert not house.control.calls


async def test_control_api_judges_known_keys_itself_and_who_may_scrape(make_house):
    house = await make_house(KEYS)
    await house.ask(get("/v1/workers", "Authorization: Bearer metrics-key-012345"))
    await house.ask(get("/metrics"))
    known, scraper = (call.request.headers for call in house.control.calls)
    assert known["authorization"] == "Bearer metrics-key-012345"
    assert "authorization" not in scraper


@pytest.mark.parametrize("framing", ["Content-Length: 262145", "Transfer-Encoding: chunked"])
async def test_control_body_over_its_own_limit_is_refused(house, framing):
    client = await house.client()
    lines = ("Content-Type: application/json", framing)
    client.send(get("/v1/workers/spawn", *lines, method="POST"))
    if "chunked" in framing:
        client.send(b"40001\r\n" + b"x" * 262145)
    answer = await client.answer()
    assert (answer.status, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert "262144" in answer.json()["error"]["message"]


async def test_control_body_at_its_limit_is_let_in(house):
    assert (await house.ask(post(b"x" * 262144, "/v1/workers/spawn"))).status == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/v1/health", "/metrics"])
@pytest.mark.parametrize("framing", ["Content-Length: 1", "Transfer-Encoding: chunked"])
async def test_path_that_is_open_to_everybody_takes_no_body(house, path, framing):
    assert (await house.ask(get(path, framing))).status == 413


async def test_preflight_takes_no_body(make_house):
    house = await make_house(cors_origins=("https://chat.example",))
    lines = ("Origin: https://chat.example", "Access-Control-Request-Method: POST", "Content-Length: 1")
    assert (await house.ask(get("/v1/completions", *lines, method="OPTIONS"))).status == 413


async def test_hive_that_stops_refuses_a_request_whose_body_was_still_coming(house):
    await house.worker()
    client = await house.client()
    raw = post(CHAT)
    client.send(raw[:-1])
    await until(lambda: house.gateway.buffer.used)
    house.gateway.closing = True
    client.send(raw[-1:])
    assert (await client.answer()).json()["error"]["code"] == "shutting_down"


async def test_unknown_model_is_told_with_the_names_there_are(house):
    await house.worker()
    house.announce("w2", Standing.COMING, "synthetic:b")
    answer = await house.ask(post({"model": "gpt-4"}))
    assert (answer.status, answer.json()["error"]["type"]) == (404, "invalid_request_error")
    assert answer.json()["error"]["details"]["models"] == ["synthetic:a", "synthetic:b"]
    assert [(usage.model, usage.status) for usage in house.usages] == [("other", 404)]


async def test_unknown_model_is_told_the_built_in_name_of_a_model(house):
    house.announce("w1", Standing.COMING, BUILT_IN_ALIASES["example"])
    answer = await house.ask(post({"model": "gpt-4"}))
    assert answer.json()["error"]["details"]["models"] == ["example"]
    assert "There are: example." in answer.json()["error"]["message"]


async def test_anthropic_paths_get_anthropics_shape(house):
    answer = await house.ask(post({"model": "gpt-4"}, "/v1/messages", "X-Request-Id: r1"))
    value = answer.json()
    assert (value["type"], value["error"]["type"], value["request_id"]) == ("error", "not_found_error", "r1")


async def test_worker_that_cannot_be_asked_says_why(house):
    house.announce("w1", Standing.OUT, message="circuit open until 12:00")
    answer = await house.ask(post(CHAT))
    assert (answer.status, answer.json()["error"]["code"]) == (503, "no_ready_worker")
    assert "circuit open until 12:00" in answer.json()["error"]["message"]
    assert [(usage.model, usage.status) for usage in house.usages] == [("synthetic:a", 503)]


async def test_hive_that_stops_refuses_inference_and_still_relays_control(house):
    await house.worker()
    house.gateway.closing = True
    answer = await house.ask(post(CHAT))
    assert (answer.status, answer.json()["error"]["code"]) == (503, "shutting_down")
    assert "retry-after" in answer.headers
    assert (await house.ask(get("/v1/workers"))).status == 200
    assert (await house.ask(get("/readyz"))).status == 503


@pytest.mark.parametrize("sent", [200, None], ids=["part", "whole"])
async def test_body_over_the_limit_is_refused_before_it_is_read(make_house, sent):
    house = await make_house(max_body=1000)
    client = await house.client()
    client.send(post(b"x" * 1001)[:sent])
    answer = await client.answer()
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert await client.rest() == b""


async def test_chunked_body_over_the_limit_is_refused_when_it_is_over(make_house):
    house = await make_house(max_body=1000)
    client = await house.client()
    client.send(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n" + b"1f4\r\n" + b"x" * 500 + b"\r\n"
    )
    await until(lambda: house.gateway.buffer.used == 500)
    client.send(b"1f5\r\n" + b"x" * 501 + b"\r\n")
    assert (await client.answer()).status == 413
    assert await client.rest() == b""
    assert house.gateway.buffer.used == 0


async def test_body_at_the_limit_is_let_in(make_house):
    house = await make_house(max_body=1000)
    await house.worker()
    body = b'{"model":"synthetic:a"}'.ljust(1000)
    assert (await house.ask(post(body))).status == 200


async def test_bodies_of_all_requests_share_one_limit(make_house):
    house = await make_house(buffer_limit=1500)
    house.announce("w1", Standing.COMING)
    first = await house.client()
    first.post(b'{"model":"synthetic:a"}'.ljust(1000))
    await until(lambda: house.gateway.waiting()["synthetic:a"] == 1)
    second = await house.ask(post(b'{"model":"synthetic:a"}'.ljust(1000)))
    assert (second.status, second.json()["error"]["code"]) == (503, "buffer_full")
    first.leave()
    await until(lambda: house.gateway.buffer.used == 0)
    await house.worker()
    assert (await house.ask(post(b'{"model":"synthetic:a"}'.ljust(1000)))).status == 200


@pytest.mark.parametrize("complete", [True, False])
async def test_header_over_the_limit_is_refused(make_house, complete):
    house = await make_house(max_header=2000)
    client = await house.client()
    client.send(get("/livez", f"X: {'y' * 2000}")[: None if complete else 2010])
    answer = await client.answer()
    assert (answer.status, answer.headers["connection"]) == (431, "close")
    assert await client.rest() == b""
    assert (await house.ask(get("/livez", f"X: {'y' * 1900}"))).status == 200


async def test_body_that_comes_byte_by_byte_times_out(make_house):
    """Each byte comes within the limit, so only all of them together can be too slow."""
    house = await make_house(idle_timeout=1.0)
    client = await house.client()
    client.send(post(b"x" * 1000)[:-999])

    async def drip():
        for _ in range(998):
            client.send(b"x")
            await asyncio.sleep(0.1)

    dripping = asyncio.create_task(drip())
    assert (await client.answer()).status == 408
    dripping.cancel()


async def test_idle_connection_is_closed_without_a_word(make_house):
    house = await make_house(idle_timeout=0.3)
    client, silent = await house.client(), await house.client()
    client.send(get("/livez"))
    await client.answer()
    assert await client.rest() == b""
    assert await silent.rest() == b""


async def test_refused_client_may_send_all_before_it_reads_its_answer(house):
    client = await house.client()
    # More than the sockets hold: closed at once, the connection would be reset in the middle of it.
    client.send(post(b"x" * 20_000_000, "/v1/completions", "Origin: http://evil"))
    await until(lambda: not client.writer.transport.get_write_buffer_size())
    assert not client.writer.transport.is_closing()
    answer = await client.answer()
    assert (answer.status, answer.headers["connection"]) == (403, "close")
    assert await client.rest() == b""


async def test_refused_request_with_its_body_at_hand_keeps_the_connection(house):
    client = await house.client()
    client.send(post(CHAT, "/v1/completions", "Origin: http://evil") + get("/livez"))
    assert (await client.answer()).status == 403
    assert (await client.answer()).json() == {"status": "alive"}


def hostile_requests(count: int) -> list[bytes]:
    """Good requests with something broken in them: a byte changed, cut, doubled, put in; and pure noise."""
    dice = random.Random(20261124)
    good = [
        post(CHAT),
        get("/v1/workers"),
        get("/livez"),
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ]
    pieces = [
        b"\x00",
        b"\r",
        b"\n",
        b"\x7f",
        b"\r\n ",
        b" ",
        b":",
        b"\xff",
        b"Content-Length: 7\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"HTTP/2.0",
    ]
    made = []
    for number in range(count):
        raw = bytearray(dice.choice(good))
        at = dice.randrange(len(raw))
        if number % 10 == 0:
            raw = bytearray(dice.randbytes(dice.randrange(1, 400)))
        elif number % 3 == 0:
            del raw[at : at + dice.randrange(1, 10)]
        else:
            raw[at:at] = dice.choice(pieces)
        made.append(bytes(raw))
    return made


async def test_after_200_malformed_requests_nothing_is_lost(make_house):
    house = await make_house(header_timeout=0.5, idle_timeout=1.0)
    await house.worker()
    requests = hostile_requests(200)
    clients = [await house.client() for _ in requests]
    for client, raw in zip(clients, requests, strict=True):
        client.send(raw)
    answers = await asyncio.gather(*(client.rest() for client in clients))
    first_lines = {answer.split(b" ")[0] for answer in answers if answer}
    assert first_lines == {b"HTTP/1.1"}
    statuses = [answer.split(b" ")[1] for answer in answers if answer]
    assert statuses.count(b"400") > 50
    assert not {status for status in statuses if status >= b"500"}
    await until(lambda: not house.gateway._connections)
    assert (await house.ask(post(CHAT))).status == 200
    assert (await house.ask(get("/v1/workers"))).status == 200
    assert house.gateway.buffer.used == house.slots_used() == 0
