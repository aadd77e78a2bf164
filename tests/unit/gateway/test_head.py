import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rbee.core.errors import MalformedRequest
from rbee.gateway.head import is_hopeless, parse_head

HOST = b"Host: localhost\r\n"


def post(*lines: bytes) -> bytes:
    return b"POST /v1/x HTTP/1.1\r\n" + HOST + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def test_head_is_read():
    head = parse_head(post(b"ACCEPT:text/event-stream", b"X-A: \t b c\t ", b"X-A: d", b"Content-Length: 0012"))
    assert (head.method, head.target, head.path, head.minor) == (b"POST", b"/v1/x", b"/v1/x", 1)
    assert head.headers == [
        (b"host", b"localhost"),
        (b"accept", b"text/event-stream"),
        (b"x-a", b"b c"),
        (b"x-a", b"d"),
        (b"content-length", b"0012"),
    ]
    assert head.fields[b"x-a"] == b"b c"
    assert (head.length, head.chunked, head.has_body) == (12, False, True)


def test_path_is_the_target_without_its_query():
    head = parse_head(b"GET /v1/events?follow=true?x HTTP/1.1\r\n" + HOST + b"\r\n")
    assert head.path == b"/v1/events"
    assert head.target == b"/v1/events?follow=true?x"


def test_http_1_0_may_come_without_a_host():
    assert parse_head(b"GET /livez HTTP/1.0\r\n\r\n").minor == 0


@pytest.mark.parametrize(
    ("minor", "connection", "keep_alive"),
    [
        (1, b"", True),
        (1, b"Connection: close\r\n", False),
        (1, b"Connection: foo, CLOSE\r\n", False),
        (1, b"Connection: foo\r\nConnection: close\r\n", False),
        (0, b"", False),
        (0, b"Connection: Keep-Alive\r\n", True),
    ],
)
def test_connection_says_whether_another_request_may_follow(minor, connection, keep_alive):
    head = parse_head(b"GET / HTTP/1.%d\r\n" % minor + HOST + connection + b"\r\n")
    assert head.keep_alive is keep_alive


def test_only_http_1_1_can_expect_a_100():
    expect = b"Expect: 100-Continue\r\n\r\n"
    assert parse_head(b"POST / HTTP/1.1\r\n" + HOST + expect).expects_continue
    assert not parse_head(b"POST / HTTP/1.0\r\n" + HOST + expect).expects_continue


@pytest.mark.parametrize(
    "part", [b"GET / HTTP/1.1\n", b"\n", b"GET / HTTP/1.1\r\nA: b\n", b"a\rb", b"\x16\x03\x01", b"a\x7f"]
)
def test_hopeless_beginning_is_known_before_its_end(part):
    assert is_hopeless(part, 0, len(part))


@pytest.mark.parametrize(
    "part", [b"", b"GET", b"GET / HTTP/1.1\r", b"GET / HTTP/1.1\r\nA: \tb\xff\r\n", b"GET / HTTP/1.1\r\n\r"]
)
def test_good_beginning_is_waited_for(part):
    assert not any(is_hopeless(part, start, len(part)) for start in range(len(part) + 1))


class Recorder:
    """What httptools makes of a request."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.heads = 0

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.heads += 1


_names = st.sampled_from(
    [b"A", b"Accept", b"Content-Length", b"Transfer-Encoding", b"Connection", b"X-Y", b"a b", b"", b"Content-Length "]
)
_values = st.one_of(
    st.sampled_from([b"3", b"chunked", b"close", b"3, 3", b"gzip, chunked", b"", b"\xe9", b"a\x00b", b"a\nb", b"\tx "]),
    st.binary(max_size=6),
)
_ends = st.sampled_from([b"\r\n"] * 8 + [b"\n", b"\r", b"\r\n "])
_lines = st.tuples(_names, st.sampled_from([b": ", b":", b" :"]), _values, _ends).map(b"".join)
_methods = st.sampled_from([b"GET", b"POST", b"DELETE", b"get", b"G T", b"OPTIONS"])
_targets = st.sampled_from([b"/", b"/a?b", b"*", b"http://a/", b"/\xe9", b"/ x", b"//", b"/#a"])
_versions = st.sampled_from([b"1.1", b"1.1", b"1.0", b"0.9", b"2.0", b"1.11"])


@given(_methods, _targets, _versions, st.lists(_lines, max_size=4))
@example(b"POST", b"/", b"1.1", [b"Connection: a\r\n", b"Content-Length: 3\r\n"])
def test_every_head_that_we_accept_means_the_same_to_httptools(method, target, version, lines):
    raw = b"%b %b HTTP/%b\r\nHost: a\r\n%b\r\n" % (method, target, version, b"".join(lines))
    end = raw.find(b"\r\n\r\n") + 4
    try:
        head = parse_head(raw[:end])
    except MalformedRequest:
        return
    theirs = Recorder()
    parser = httptools.HttpRequestParser(theirs)
    parser.feed_data(raw[:end])
    assert theirs.heads == 1
    assert theirs.url == head.target
    assert theirs.headers == head.headers
    assert parser.get_method() == head.method
    assert parser.get_http_version() == f"1.{head.minor}"
