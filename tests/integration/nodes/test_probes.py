"""A stranger may answer anything: it is a whole HTTP answer, or an OSError."""

from contextlib import asynccontextmanager

import anyio
import pytest

from rbee.core.launch import Reply
from rbee.nodes.probes import MAX_BODY_BYTES, MAX_HEAD_BYTES, HttpProbe

pytestmark = pytest.mark.anyio
LONG = b"x" * MAX_BODY_BYTES


@asynccontextmanager
async def stranger(answer):
    """Answers each request with these bytes and closes; ``asked`` collects the requests."""
    asked = []
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)

    async def serve(stream):
        async with stream:
            asked.append(await stream.receive())
            try:
                await stream.send(answer)
            except anyio.BrokenResourceError:
                return  # it has heard enough

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield f"http://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}", asked
        tasks.cancel_scope.cancel()
    await listener.aclose()


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell", Reply(200, b"well")),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Reply(200, b"")),
        (b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n1\r\nt\r\n0\r\n\r\n", Reply(503, b"not")),
        (b"HTTP/1.0 200 OK\r\n\r\nto the end", Reply(200, b"to the end")),
        (b"HTTP/1.1 204 None\r\n\r\n", Reply(204, b"")),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", Reply(200, b"ok")),
        (b"HTTP/1.1 302 There\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", Reply(302, b"")),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n" + LONG, Reply(200, LONG)),
    ],
)
async def test_a_whole_answer_is_a_reply(answer, reply):
    async with stranger(answer) as (url, asked):
        assert await HttpProbe().get(url, "/health?x=1", "k") == reply
    lines = asked[0].decode().split("\r\n")
    assert lines[0] == "GET /health?x=1 HTTP/1.1"
    assert {"Connection: close", "Authorization: Bearer k", f"Host: {url.removeprefix('http://')}"} <= set(lines)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 2 * MAX_HEAD_BYTES,
        b"HTTP/1.1 200 OK\r\n\r\nx" + LONG,
        b"HTTP/1.1 200 OK\r\nContent-Length: 1048577\r\n\r\nx" + LONG,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"HTTP/1.1 999999 OK\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_anything_else_is_an_error_of_the_system(answer):
    async with stranger(answer) as (url, _):
        with anyio.fail_after(60), pytest.raises(OSError):  # noqa: PT011 - one of many
            await HttpProbe().get(url, "/health", "k")


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("https://127.0.0.1:1", "/health"),
        ("", "/health"),
        ("http://127.0.0.1:99999", "/health"),
        ("http://[::1", "/health"),
        ("http://" + "a" * 70 + ".invalid:1", "/health"),
        ("http://127.0.0.1:1", "/health\r\nX: y"),
        ("http://127.0.0.1:1", "/h\u20acalth"),
    ],
)
async def test_what_cannot_be_asked_is_one_too(url, path):
    with pytest.raises(OSError):  # noqa: PT011 - one of many
        await HttpProbe().get(url, path, "k")
