import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.core.routing import Route
from rbee.gateway import rewrite
from rbee.gateway.head import parse_head

ROUTE = Route("w1", "synthetic:a", host="127.0.0.1", port=8081, key="engine-key")
FROM_CLIENT = (
    "Host: localhost:9200",
    "Authorization: Bearer client-key",
    "X-Api-Key: client-key",
    "Cookie: a=b",
    "Origin: http://localhost:9200",
    "Connection: keep-alive, X-Secret-Hop",
    "X-Secret-Hop: 1",
    "Keep-Alive: timeout=5",
    "TE: trailers",
    "Upgrade: h2c",
    "HTTP2-Settings: x",
    "Expect: 100-continue",
    "Proxy-Authorization: Basic x",
    "X-Rbee-Principal: admin",
    "X-RBEE-Worker: w9",
    "Forwarded: for=1.2.3.4",
    "X-Forwarded-For: 1.2.3.4",
    "X-Forwarded-Proto: https",
    "X-Conversation-Id: 7",
    "X-Request-Id: mine",
    "Accept-Encoding: gzip",
    "Accept: text/event-stream",
    "X-Stainless-Lang: python",
    "Content-Type: application/json",
    "Content-Length: 2",
)


def lines_of(raw: bytes) -> list[bytes]:
    assert raw.endswith(b"\r\n\r\n")
    return raw[:-4].split(b"\r\n")


def test_engine_gets_its_own_key_and_nothing_that_belongs_to_us(head_of):
    assert lines_of(rewrite.for_engine(head_of(*FROM_CLIENT), ROUTE, 2, "id-1")) == [
        b"POST /v1/chat/completions HTTP/1.1",
        b"host: 127.0.0.1:8081",
        b"authorization: Bearer engine-key",
        b"accept: text/event-stream",
        b"x-stainless-lang: python",
        b"content-type: application/json",
        b"content-length: 2",
        b"x-request-id: id-1",
    ]


def test_engine_without_a_key_gets_none(head_of):
    raw = rewrite.for_engine(head_of(*FROM_CLIENT), Route("w", "m", host="::1", port=1), 2, "id-1")
    assert b"authorization" not in raw
    assert b"host: [::1]:1\r\n" in raw


def test_control_gets_the_keys_and_the_host(head_of):
    assert lines_of(rewrite.for_control(head_of(*FROM_CLIENT), 2, "id-1")) == [
        b"POST /v1/chat/completions HTTP/1.1",
        b"host: localhost:9200",
        b"authorization: Bearer client-key",
        b"x-api-key: client-key",
        b"cookie: a=b",
        b"origin: http://localhost:9200",
        b"x-conversation-id: 7",
        b"accept-encoding: gzip",
        b"accept: text/event-stream",
        b"x-stainless-lang: python",
        b"content-type: application/json",
        b"content-length: 2",
        b"x-request-id: id-1",
    ]


def test_chunked_request_leaves_with_a_length(head_of):
    raw = rewrite.for_control(head_of("Transfer-Encoding: chunked"), 7, "id-1")
    assert b"content-length: 7\r\n" in raw
    assert b"chunked" not in raw


def test_get_without_a_body_leaves_without_a_length(head_of):
    assert b"content-length" not in rewrite.for_control(head_of(method="GET"), 0, "id-1")
    assert b"content-length: 0\r\n" in rewrite.for_control(head_of(method="DELETE"), 0, "id-1")


@given(st.lists(st.sampled_from(FROM_CLIENT[1:-1]), unique=True))
def test_no_choice_of_headers_brings_a_secret_or_a_claim_to_an_engine(lines):
    head = parse_head("\r\n".join(["POST /v1/messages HTTP/1.1", FROM_CLIENT[0], *lines, "", ""]).encode())
    raw = rewrite.for_engine(head, ROUTE, 0, "id-1").lower()
    for word in (
        b"client-key",
        b"cookie",
        b"x-rbee-",
        b"forwarded",
        b"conversation",
        b"upgrade",
        b"keep-alive",
        b"mine",
    ):
        assert word not in raw


def test_answer_loses_what_is_not_the_workers_to_say():
    fields = [
        (b"Content-Type", b"application/json"),
        (b"Access-Control-Allow-Origin", b"*"),
        (b"Server", b"llama.cpp"),
        (b"Connection", b"close"),
        (b"Keep-Alive", b"timeout=5"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Content-Length", b"2"),
        (b"X-Request-Id", b"theirs"),
        (b"X-Rbee-Worker", b"w9"),
        (b"X-Other", b"1"),
    ]
    assert rewrite.from_upstream(fields) == b"Content-Type: application/json\r\nX-Other: 1\r\n"


def test_status_without_a_name_is_written_all_the_same():
    assert rewrite.status_line(299) == b"HTTP/1.1 299 \r\n"
    assert rewrite.status_line(200) == b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize("offered", [b"a", b"A-1_b.c", b"x" * 128])
def test_harmless_request_id_is_kept(offered):
    assert rewrite.request_id(offered) == offered.decode()


@pytest.mark.parametrize("offered", [None, b"", b"x" * 129, b"a b", b"a\xe9", b'a"', b"a\n"])
def test_other_request_id_is_replaced(offered):
    made = rewrite.request_id(offered)
    assert made.startswith("req-")
    assert made != rewrite.request_id(offered)
