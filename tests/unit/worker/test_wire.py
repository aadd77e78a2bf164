import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from rbee.worker.wire import Address, Answer, BadAnswer, call, parse_address

Serve = Callable[[bytes], Address]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:9200", Address("localhost", 9200)),
        ("http://localhost:9200/", Address("localhost", 9200)),
        ("http://hive", Address("hive", 80)),
        ("https://hive/rbee/", Address("hive", 443, "/rbee", encrypted=True)),
        ("http://[::1]:9200", Address("::1", 9200)),
        ("unix:/run/rbee/a b.sock", Address("localhost", 0, unix_socket="/run/rbee/a b.sock")),
    ],
)
def test_addresses_are_read(url: str, expected: Address) -> None:
    assert parse_address(url) == expected


@pytest.mark.parametrize("url", ["http://hive:9200", "https://hive:443/rbee", "http://[::1]:1", "unix:/a b.sock"])
def test_an_address_is_shown_as_it_was_given(url: str) -> None:
    assert str(parse_address(url)) == url


@pytest.mark.parametrize(
    "url",
    ["", "localhost:9200", "http:///x", "ftp://x", "unix:x", "http://x?y", "http://x#y", "http://x:y", "http://x/ü"],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_address(url)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve one connection with these bytes, then close it."""
    servers: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(answer: bytes) -> Address:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def run() -> None:
            with suppress(OSError):
                client, _ = server.accept()
                with client:
                    client.recv(65536)
                    client.sendall(answer)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return Address("127.0.0.1", server.getsockname()[1])

    yield start
    for server in servers:
        server.close()
    for thread in threads:
        thread.join(30)


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}rest", 200, b"{}"),
        (b"HTTP/1.0 200 OK\r\n\r\nall of it", 200, b"all of it"),
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 200, b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\ncontent-length: 1\r\n\r\nx", 404, b"x"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n",
            200,
            b"abc0123456789",
        ),
    ],
)
def test_answers_of_every_framing_are_read(serve: Serve, answer: bytes, status: int, body: bytes) -> None:
    assert call(serve(answer), "GET", "/", timeout=30) == (status, body)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        b"HTTP/1.1 200 OK\r\nX: y",
        b"HTTP/1.1 200 OK\r\nContent-Length: %b\r\n\r\n{}" % (b"9" * 5000),
    ],
)
def test_what_is_no_whole_answer_is_an_error(serve: Serve, answer: bytes) -> None:
    with pytest.raises(BadAnswer):
        call(serve(answer), "GET", "/", timeout=30)


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"9" * 5000, b"\xff"])
def test_a_body_that_cannot_be_read_has_no_value(body: bytes) -> None:
    assert Answer(200, body).json() is None


def test_a_peer_that_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(TimeoutError):
        call(Address("127.0.0.1", silent.getsockname()[1]), "GET", "/", timeout=0.05)


def test_a_body_and_headers_are_sent() -> None:
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            client, _ = server.accept()
            with client:
                received.append(client.recv(65536))
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue")

        thread = threading.Thread(target=run)
        thread.start()
        address = Address("127.0.0.1", server.getsockname()[1], "/base")
        answer = call(address, "POST", "/x", timeout=30, headers={"A": "b"}, body={"c": 1})
        thread.join(30)
    head, _, body = received[0].partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0] == b"POST /base/x HTTP/1.1"
    assert b"A: b" in head
    assert body == b'{"c": 1}'
    assert answer.json() is True
