"""Connections to workers: what is told of an answer however its bytes come, and what becomes of the connection."""

from itertools import pairwise

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.gateway.pool import Pool
from rbee.gateway.upstream import Request, Upstream, whole_chunk
from tests.unit.gateway.upstreams import WORKER, FakeAsker, FakeTransport

pytestmark = pytest.mark.anyio
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"


def connected(pool: Pool) -> tuple[Upstream, FakeTransport, FakeAsker]:
    """A connection that carries a request."""
    upstream, transport, asker = Upstream(pool, WORKER), FakeTransport(), FakeAsker()
    pool._open.add(upstream)
    upstream._asker, upstream._transport = None, transport
    upstream.ask(Request(b"", b""), asker)
    return upstream, transport, asker


async def test_request_ends_though_nobody_ends_its_connection():
    pool = Pool(gone_grace=0.0)
    _, transport, asker = connected(pool)
    pool.retain(ready=(), known=[WORKER])
    assert not transport.aborted
    pool.retain(ready=(), known=())
    with anyio.fail_after(5):
        await asker.ended.wait()
    assert transport.aborted
    assert "gone" in asker.reason
    assert not len(pool)


async def test_what_the_worker_had_written_is_read_though_the_client_is_slow():
    pool = Pool(gone_grace=60.0)
    upstream, transport, asker = connected(pool)
    upstream.data_received(ANSWER + b"ab")
    upstream.pause()
    assert not transport.reading
    pool.retain(ready=(), known=())
    assert transport.reading
    upstream.pause()
    assert transport.reading
    upstream.data_received(b"cd")
    assert (asker.data, asker.done) == (b"abcd", True)


async def test_connection_is_kept_for_a_ready_worker_alone():
    for ready, kept in (([WORKER], 1), ([], 0)):
        pool = Pool()
        upstream, transport, _ = connected(pool)
        pool.retain(ready=ready, known=[WORKER])
        upstream.data_received(ANSWER + b"abcd")
        assert pool.idle(WORKER) == kept
        assert transport.aborted is not bool(kept)


async def test_connection_of_a_worker_that_was_gone_is_not_kept_for_who_has_its_address_now():
    pool = Pool()
    upstream, transport, _ = connected(pool)
    pool.retain(ready=(), known=())
    pool.retain(ready=[WORKER], known=[WORKER])
    upstream.data_received(ANSWER + b"abcd")
    assert pool.idle(WORKER) == 0
    assert transport.aborted


async def test_control_socket_belongs_to_no_worker():
    pool = Pool(gone_grace=0.0)
    upstream, transport, asker = connected(pool)
    upstream.address = "/run/control.sock"
    pool.retain(ready=(), known=())
    upstream.data_received(ANSWER + b"abcd")
    assert asker.done
    assert pool.idle("/run/control.sock") == 1
    assert not transport.aborted


def answered(pool: Pool, address) -> tuple[Upstream, FakeTransport]:
    """A connection that is kept."""
    upstream, transport = Upstream(pool, address), FakeTransport()
    pool._open.add(upstream)
    upstream._asker, upstream._transport = None, transport
    pool.keep(upstream)
    return upstream, transport


async def test_at_the_limit_a_kept_connection_is_ended_for_a_new_one():
    pool = Pool()
    pool.limit = 2
    (_, first), (_, second) = answered(pool, ("127.0.0.1", 8081)), answered(pool, ("127.0.0.1", 8082))
    pool.ask(("127.0.0.1", 8083), Request(b"", b""), FakeAsker()).abandon()
    assert (first.aborted, second.aborted) == (True, False)


@pytest.mark.parametrize(
    ("data", "start"),
    [
        (b"3\r\nabc\r\n", 3),
        (b"00A\r\n0123456789\r\n", 5),
        (b"0\r\n\r\n", 0),
        (b"3\r\nabc\r", 0),
        (b"3\r\nabcd\r\n", 0),
        (b"3\r\nabcde", 0),
        (b"3;x=y\r\nabc\r\n", 0),
        (b"+3\r\nabc\r\n", 0),
        (b"0x3\r\nabc\r\n", 0),
        (b"3\nabc\r\n", 0),
        (b"3\r\nabc\r\n1\r\nd\r\n", 0),
        (b"", 0),
    ],
)
def test_whole_chunk_is_one_chunk_and_nothing_else(data, start):
    assert whole_chunk(data) == start


def in_pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(places)]


def chunked(parts: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@given(
    st.lists(
        st.sampled_from([b"data: 1\n\n", b"1\r\n", b"\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"x" * 300]), min_size=1
    ),
    st.lists(st.integers(0, 10**6)),
    st.booleans(),
)
def test_chunked_answer_is_the_same_however_its_bytes_come(parts, cuts, chunk_by_chunk):
    upstream, _, asker = connected(Pool())
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    if chunk_by_chunk:
        pieces = [head, *(b"%x\r\n%b\r\n" % (len(part), part) for part in parts), b"0\r\n\r\n"]
        pieces = [half for piece in pieces for half in (in_pieces(piece, cuts) if len(piece) % 3 == 0 else [piece])]
    else:
        pieces = in_pieces(head + chunked(parts), cuts)
    for piece in pieces:
        assert not asker.done
        upstream.data_received(piece)
    assert (asker.data, asker.done) == (b"".join(parts), True)


@given(
    st.lists(st.tuples(st.binary(max_size=30), st.lists(st.integers(0, 10**6), max_size=3), st.booleans()), max_size=6)
)
def test_answers_on_one_connection_are_told_one_by_one_however_their_bytes_come(answers):
    pool = Pool()
    upstream, transport, _ = connected(pool)
    for body, cuts, usual in answers:
        asker = FakeAsker()
        upstream.ask(Request(b"", b""), asker)
        lines = b"Content-Type: application/json\r\n" if usual else b"X-Other: 1\r\n"
        for piece in in_pieces(b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (lines, len(body), body), cuts):
            assert not asker.done
            upstream.data_received(piece)
        assert (asker.data, asker.done, asker.head) == (body, True, (200, len(body), lines))
        assert pool.idle(WORKER) == 1
        assert pool._idle[WORKER].pop() is upstream
    assert not transport.aborted


async def test_usual_head_with_more_behind_its_body_ends_the_connection():
    pool = Pool()
    for rest in (b"", b"X", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"):
        upstream, transport, _ = connected(pool)
        for more in (b"", rest):
            asker = FakeAsker()
            upstream.ask(Request(b"", b""), asker)
            upstream.data_received(ANSWER + b"abcd" + more)
            assert (asker.data, asker.done) == (b"abcd", True)
        assert transport.aborted is bool(rest)
