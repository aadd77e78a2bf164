"""TLS ends at the gateway; everything else is as without it."""

import asyncio
import socket
import ssl
import subprocess

import pytest

from tests.integration.gateway.stubs import Client, get, post
from tests.tools import need_tool

pytestmark = pytest.mark.anyio


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
async def tls_client(house, certificate):
    """Opens connections to a TLS port of the house."""
    cert, key = certificate
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(cert, key)
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    await house.gateway.serve(sock, serving)
    trusting = ssl.create_default_context(cafile=cert)

    async def connect():
        streams = await asyncio.open_connection(
            "127.0.0.1", sock.getsockname()[1], ssl=trusting, server_hostname="localhost"
        )
        house.clients.append(Client(*streams))
        return house.clients[-1]

    connect.port = sock.getsockname()[1]
    return connect


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


async def test_connection_that_does_not_speak_tls_leaves_nothing_behind(house, tls_client):
    stranger = Client(*await asyncio.open_connection("127.0.0.1", tls_client.port))
    house.clients.append(stranger)
    stranger.send(get("/livez"))
    assert b"HTTP" not in await stranger.rest()
    assert not house.gateway._connections
