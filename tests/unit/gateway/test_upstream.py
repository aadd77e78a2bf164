"""A connection whose worker is gone: what was written is read, and then it ends, whoever holds its other side."""

import anyio
import pytest

from rbee.gateway.upstream import Pool, Request, Upstream
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
