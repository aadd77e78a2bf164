import socket
import struct
import sys

import pytest

from rbee.gateway.patience import Patience


class Peer:
    """A transport whose peer takes bytes when it is told to."""

    def __init__(self, *, has_socket):
        self.taken = 0
        self.has_socket = has_socket

    def get_extra_info(self, name):
        return self if self.has_socket else None

    def getsockopt(self, level, option, size):
        assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO)
        return struct.pack("=120xQ", self.taken)[:size]

    def get_write_buffer_size(self):
        return 1000 - self.taken


@pytest.fixture(params=["by the system's count", "by our own buffer"])
def peer(request):
    if "system" in request.param and sys.platform != "linux":
        pytest.skip("only Linux tells how many bytes were acknowledged")
    return Peer(has_socket="system" in request.param)


def test_seconds_count_from_the_beginning_while_nothing_is_taken(peer):
    patience = Patience(peer, 100.0)
    assert patience.seconds(100.0) == 0.0
    assert patience.seconds(174.0) == 74.0


def test_every_byte_that_is_taken_starts_them_anew(peer):
    patience = Patience(peer, 100.0)
    peer.taken += 1
    assert patience.seconds(174.0) == 0.0
    assert patience.seconds(200.0) == 26.0
    peer.taken += 500
    assert patience.seconds(240.0) == 0.0
