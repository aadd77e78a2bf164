import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.core.errors import Forbidden, Misdirected, UnsupportedMediaType
from rbee.gateway import fence
from rbee.gateway.head import parse_head

OURS = [
    "localhost", "LOCALHOST", "localhost:9200", "a.localhost", "a.b.localhost:1", "127.0.0.1", "127.0.0.1:9200",
    "127.255.255.254", "127.9.9.9:1", "[::1]", "[::1]:9200", "hive.lan", "Hive.LAN:9200", "hive.lan:80", "box:9200",
]  # fmt: skip
FOREIGN = [
    "", "evil.example", "localhost.evil.example", "evil-localhost", "127.0.0.1.evil.example", "127.0.0.256",
    "127.1", "127.0.0.1.1", "128.0.0.1", "0.0.0.0", "[::2]", "[::1", "::1", "[::1].evil", "localhost:", "localhost:x",
    "localhost:123456", "localhost@evil", "evil@localhost", "localhost, evil", "localhost/", "localhost\xa0",
    ".localhost", "box", "box:9201", "hive.lan.evil", "xhive.lan", "2130706433", "127.0.0.01x",
]  # fmt: skip
ALLOWED = ("hive.lan", "box:9200")


@pytest.mark.parametrize("host", OURS)
def test_loopback_and_allowed_names_are_ours(head_of, host):
    fence.check_host(head_of(f"Host: {host}"), ALLOWED)


@pytest.mark.parametrize("host", FOREIGN)
def test_every_other_host_is_misdirected(head_of, host):
    with pytest.raises(Misdirected):
        fence.check_host(head_of(f"Host: {host}"), ALLOWED)


def test_http_1_0_without_a_host_is_let_in():
    fence.check_host(parse_head(b"GET /livez HTTP/1.0\r\n\r\n"), ())


# Random letters would hardly ever spell a loopback name, so nearly all examples would be foreign.
_pieces = st.sampled_from(
    ["localhost", "127", "0", "1", "255", "256", ".", ".", ":", "9200", "[", "]", "::1", "[::1]", "127.0.0.1", "@", "-",
     "evil", "example"]
)  # fmt: skip


@given(st.lists(_pieces, min_size=1, max_size=6).map("".join))
def test_no_host_is_ours_that_does_not_end_in_a_loopback_name(host):
    try:
        fence.check_host(parse_head(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()), ())
    except Misdirected:
        return
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    assert name.endswith("localhost") or name.startswith("127.") or name == "[::1]"


def test_page_of_our_own_needs_no_permission(head_of):
    assert fence.check_origin(head_of("Host: localhost:9200", "Origin: http://LOCALHOST:9200"), ()) is None
    assert fence.check_origin(head_of("Host: localhost:9200"), ()) is None


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://localhost", "http://localhost:9201", "file://", "", "ftp://localhost:9200"],
)
def test_foreign_page_is_refused(head_of, origin):
    with pytest.raises(Forbidden):
        fence.check_origin(head_of("Host: localhost:9200", f"Origin: {origin}"), ("https://chat.example",))


@pytest.mark.parametrize("allowed", [("https://chat.example",), ("https://CHAT.example",), ("*",)])
def test_allowed_page_is_let_in_and_told(head_of, allowed):
    origin = fence.check_origin(head_of("Origin: https://chat.example"), allowed)
    assert origin == b"https://chat.example"
    assert b"access-control-allow-origin: https://chat.example\r\n" in fence.origin_lines(origin)


def test_preflight_is_an_options_request_of_an_allowed_page(head_of):
    lines = ("Origin: https://chat.example", "Access-Control-Request-Method: POST")
    assert fence.is_preflight(head_of(*lines, method="OPTIONS"), b"https://chat.example")
    assert not fence.is_preflight(head_of(*lines, method="OPTIONS"), None)
    assert not fence.is_preflight(head_of(*lines), b"https://chat.example")


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=utf-8", "application/json ;x", "application/vnd.api+json"]
)
def test_json_is_let_in(head_of, kind):
    fence.check_content_type(head_of(f"Content-Type: {kind}", "Content-Length: 1"))


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/jsonx", "application/x-json", "text/json", "", "a, application/json"]
)
def test_other_bodies_are_refused(head_of, kind):
    with pytest.raises(UnsupportedMediaType):
        fence.check_content_type(head_of(f"Content-Type: {kind}", "Content-Length: 1"))
    with pytest.raises(UnsupportedMediaType):
        fence.check_content_type(head_of(f"Content-Type: {kind}", "Transfer-Encoding: chunked"))


def test_no_body_needs_no_type(head_of):
    fence.check_content_type(head_of())
    fence.check_content_type(head_of("Content-Length: 0"))
