"""TLS ends at the gateway; everything else is as without it."""

import asyncio
import os
import socket
import ssl
import subprocess
import warnings

import anyio.to_thread
import pytest

from rbee.cli.client import Hive, HiveUnreachable
from rbee.gateway.exchange import now
from tests.integration.gateway.stubs import DEADLINE, Client, Pouring, get, post, until
from tests.tools import need_tool

pytestmark = pytest.mark.anyio
STREAM = {"model": "synthetic:a", "stream": True}


@pytest.fixture
def certificate(tmp_path):
    """Key and certificate of ``localhost``, made for this test."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = [
        need_tool("openssl"),
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += [
        "-keyout",
        key,
        "-out",
        cert,
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


@pytest.fixture
async def tls_port(house, certificate):
    """A port of the house that speaks TLS as the daemon's does."""
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.minimum_version = ssl.TLSVersion.TLSv1_2
    serving.load_cert_chain(*certificate)
    sock = socket.create_server(("127.0.0.1", 0))
    await house.gateway.serve(sock, serving)
    return sock.getsockname()[1]


@pytest.fixture
def trusting(certificate):
    return ssl.create_default_context(cafile=certificate[0])


@pytest.fixture
async def tls_client(house, tls_port, trusting):
    """Opens connections to that port."""

    async def connect(ssl=trusting):
        streams = await asyncio.open_connection("127.0.0.1", tls_port, ssl=ssl, server_hostname="localhost")
        house.clients.append(Client(*streams))
        return house.clients[-1]

    return connect


@pytest.fixture
async def stranger(house, tls_port):
    """A client of that port that does not speak TLS."""
    house.clients.append(Client(*await asyncio.open_connection("127.0.0.1", tls_port)))
    return house.clients[-1]


async def test_requests_come_through_tls(house, tls_client):
    await house.worker()
    client = await tls_client()
    for _ in range(2):
        client.post({"model": "synthetic:a", "x": "y" * 200_000})
        assert (await client.answer()).status == 200
    client.send(get("/livez"))
    assert (await client.answer()).json() == {"status": "alive"}


async def test_refused_tls_client_reads_its_answer(house, tls_client):
    client = await tls_client()
    client.send(post({}, "/v1/completions", "Origin: http://evil")[:-1])
    assert (await client.answer()).status == 403


@pytest.mark.parametrize(
    "raw",
    [
        get("/livez"),
        b"\x16\x03\x01\xff\xff" + b"x" * 70000,
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"\x00" * 500,
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
    ids=["HTTP", "record too large", "hello too short", "alert", "zeros", "SSH"],
)
async def test_connection_that_does_not_speak_tls_leaves_nothing_behind(house, stranger, raw):
    stranger.send(raw)
    assert b"HTTP" not in await stranger.rest()
    assert not house.gateway._connections


async def test_handshake_has_the_time_of_a_header(make_house, certificate):
    house = await make_house(header_timeout=0.3)
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(*certificate)
    sock = socket.create_server(("127.0.0.1", 0))
    await house.gateway.serve(sock, serving)
    silent = Client(*await asyncio.open_connection(*sock.getsockname()))
    house.clients.append(silent)
    assert await silent.rest() == b""


async def test_versions_of_tls_before_1_2_are_refused(house, tls_client, trusting):
    trusting.minimum_version = ssl.TLSVersion.TLSv1_2
    trusting.maximum_version = ssl.TLSVersion.TLSv1_2
    client = await tls_client(trusting)
    client.send(get("/livez"))
    assert (await client.answer()).status == 200
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old = ssl.create_default_context()
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await tls_client(old)


async def test_stream_comes_through_tls_piece_by_piece(house, tls_client):
    step = asyncio.Semaphore(0)

    async def stream(call):
        call.stream_head()
        for number in range(3):
            await step.acquire()
            call.chunk(b"data: %d\n\n" % number)
        call.end()

    await house.worker(answer=stream)
    client = await tls_client()
    client.post(STREAM)
    for number in range(3):
        step.release()
        if not number:
            assert (await client.head()).status == 200
        assert await client.chunk() == b"data: %d\n\n" % number
    assert await client.chunk() == b""


async def test_tls_client_that_goes_without_a_word_ends_its_stream_at_the_worker(house, tls_client):
    """Many end the connection below TLS, without close_notify."""
    gone = asyncio.Event()

    async def stream(call):
        call.stream_head()
        call.chunk(b"data: 1\n\n")
        await call.gone()
        gone.set()

    await house.worker(answer=stream)
    client = await tls_client()
    client.post(STREAM)
    await client.head()
    with socket.socket(fileno=os.dup(client.writer.get_extra_info("socket").fileno())) as below:
        below.shutdown(socket.SHUT_RDWR)
    async with asyncio.timeout(DEADLINE):
        await gone.wait()
    await until(lambda: house.slots_used() == 0)
    assert [usage.status for usage in house.usages] == [499]


async def test_slow_tls_client_slows_its_worker_down_and_is_cut_when_it_takes_nothing(house, tls_client):
    pouring = Pouring()
    await house.worker(answer=pouring)
    client = await tls_client()
    client.writer.transport.pause_reading()
    client.post(STREAM)
    await until(lambda: any(upstream.paused for upstream in house.gateway.pool._open))
    (connection,) = house.gateway._connections
    assert connection._transport.get_write_buffer_size() < 4 * 1024 * 1024
    assert pouring.sent < 60_000_000
    time = now()

    def cut() -> bool:
        nonlocal time
        time += 76.0
        connection.tick(time)
        return house.slots_used() == 0

    await until(cut)
    await until(lambda: not house.gateway._connections)


async def test_slow_tls_client_that_reads_is_not_cut(house, tls_client):
    await house.worker(answer=Pouring(400))
    client = await tls_client()
    client.post(STREAM)
    await client.head()
    (connection,) = house.gateway._connections
    got = 0
    while data := await client.chunk():
        got += len(data)
        connection.tick(now() + 74.0)
    assert got == 400 * 65536


async def test_client_that_closes_after_its_tls_request_gets_the_answer_before_the_end(house, tls_client):
    client = await tls_client()
    client.send(get("/livez", "Connection: close"))
    assert (await client.answer()).json() == {"status": "alive"}
    assert await client.rest() == b""
    await until(lambda: not house.gateway._connections)


async def test_command_line_says_how_a_certificate_is_trusted(tls_port):
    with pytest.raises(HiveUnreachable) as caught:
        await anyio.to_thread.run_sync(Hive(f"https://127.0.0.1:{tls_port}").get, "/v1/health")
    assert "is not trusted" in caught.value.message
    assert "SSL_CERT_FILE" in caught.value.message
