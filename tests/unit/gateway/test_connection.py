"""A client's connection without sockets: what its transport is told, and when."""

import json

import pytest

from rbee.core.auth import AuthPolicy
from rbee.core.routing import RouteTable
from rbee.gateway.connection import LINGER, ClientConnection
from rbee.gateway.door import FrontDoor
from rbee.gateway.exchange import now
from rbee.gateway.options import GatewayOptions

LIVEZ = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"


class DeafTransport:
    """Its peer reads nothing: closed, it still has something to write, so the connection is not lost."""

    def __init__(self):
        self.calls = []
        self.written = b""

    def write(self, data):
        self.written += data

    def close(self):
        self.calls.append("close")

    def abort(self):
        self.calls.append("abort")

    def is_closing(self):
        return bool(self.calls)

    def pause_reading(self): ...
    def resume_reading(self): ...

    def can_write_eof(self):
        return False


@pytest.fixture
def transport():
    return DeafTransport()


@pytest.fixture
def connection(transport):
    door = FrontDoor(GatewayOptions("", idle_timeout=75.0), RouteTable(), AuthPolicy({}, b""), lambda usage: None, "1")
    connection = ClientConnection(door, lambda joined: None, lambda left: None)
    connection.connection_made(transport)
    return connection


def test_closed_connection_whose_peer_does_not_read_is_aborted(connection, transport):
    connection.data_received(LIVEZ + b"Connection: close\r\n\r\n")
    assert transport.calls == ["close"]
    connection.tick(now() + 76.0)
    assert transport.calls == ["close", "abort"]


def test_idle_connection_whose_peer_does_not_read_is_aborted(connection, transport):
    connection.data_received(LIVEZ + b"\r\n")
    connection.tick(now() + 76.0)
    assert transport.calls == ["close"]
    connection.tick(now() + 152.0)
    assert transport.calls == ["close", "abort"]


def test_refused_connection_whose_peer_does_not_read_is_aborted(connection, transport):
    connection.data_received(b"nonsense\r\n\r\n")
    assert b" 400 " in transport.written
    connection.tick(now() + LINGER)
    assert transport.calls == ["close"]
    connection.tick(now() + 76.0)
    assert transport.calls == ["close", "abort"]


def test_connection_that_is_to_leave_is_aborted_where_its_peer_does_not_read(connection, transport):
    connection.leave()
    connection.tick(now() + 76.0)
    assert transport.calls == ["close", "abort"]


def test_error_of_ours_before_an_answers_first_byte_is_told_in_its_own_framing(connection, transport):
    connection.begin(200, b"", None)
    connection.broken()
    head, _, body = transport.written.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 500 ")
    assert b"transfer-encoding" not in head
    assert json.loads(body)["error"]["code"] == "unexpected_error"


def test_error_of_ours_in_an_answer_ends_the_connection(connection, transport):
    connection.begin(200, b"", None)
    connection.send(b"half")
    connection.broken()
    assert transport.calls == ["abort"]
