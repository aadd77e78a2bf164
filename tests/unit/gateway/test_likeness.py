import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.core.errors import MalformedRequest
from rbee.gateway.head import parse_head
from rbee.gateway.likeness import LARGEST, Likeness

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %b\r\nAccept: */*\r\n\r\n"


def test_head_that_differs_in_its_length_alone_is_alike():
    like = Likeness.of(HEAD % b"17")
    assert like is not None
    assert like.read(HEAD % b"4321" + b"body") == (4321, len(HEAD % b"4321"))


@pytest.mark.parametrize(
    "other",
    [
        HEAD % b"-1",
        HEAD % b"+1",
        HEAD % b"1 ",
        HEAD % b"0x1",
        HEAD % b"1,1",
        HEAD % b"",
        HEAD % b"\xc2\xb2",
        HEAD % (b"1" * 19),
        HEAD % b"1\r\nContent-Length: 1",
        HEAD % b"1\r\nTransfer-Encoding: chunked",
        (HEAD % b"1").replace(b"Accept: */*", b"Accept: a/*"),
        (HEAD % b"1").replace(b"POST", b"PUT"),
        (HEAD % b"1")[:-1],
        (HEAD % b"1")[:60],
        b"\r\n" + HEAD % b"1",
        b"",
    ],
)
def test_any_other_head_is_not_alike(other):
    like = Likeness.of(HEAD % b"17")
    assert like is not None
    assert like.read(other) is None


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nHost: a\r\ncontent-length:2\r\n\r\n",
        b"GET / HTTP/1.1\r\nX-Content-Length: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        pytest.param(b"GET / HTTP/1.1\r\nContent-Length: 1\r\nX: " + b"x" * LARGEST + b"\r\n\r\n", id="large"),
    ],
)
def test_head_without_exactly_one_length_or_too_large_has_no_likeness(head):
    assert Likeness.of(head) is None


@given(st.binary(max_size=40), st.integers(0, 10**18 - 1), st.sampled_from([b"Content-Length: ", b"content-length:"]))
def test_what_is_alike_says_what_reading_it_would_say(value, length, name):
    def head(size: int) -> bytes:
        return b"POST /v1/x HTTP/1.1\r\nHost: a\r\n%b%d\r\nX-Other: %b\r\n\r\n" % (name, size, value)

    try:
        first = parse_head(head(5))
    except MalformedRequest:
        return
    like = Likeness.of(head(5))
    assert like is not None
    assert like.read(head(length)) == (length, len(head(length)))
    second = parse_head(head(length))
    assert second.length == length
    assert [field for field in second.headers if field[0] != b"content-length"] == [
        field for field in first.headers if field[0] != b"content-length"
    ]
