"""How long a client that does not read is waited for."""

import socket
import struct
import sys
from typing import Final

from rbee.gateway.ports import Transport

_ACKED: Final = struct.Struct("=Q")
_ACKED_AT: Final = 120
"""Where ``tcpi_bytes_acked`` stands in ``struct tcp_info`` (linux/tcp.h)."""


class Patience:
    """Begins when *transport* has to wait for its peer."""

    def __init__(self, transport: Transport, now: float) -> None:
        self._transport = transport
        self._taken = _bytes_taken(transport)
        self._since = now

    def seconds(self, now: float) -> float:
        """Since the peer last took a byte."""
        taken = _bytes_taken(self._transport)
        if taken != self._taken:
            self._taken, self._since = taken, now
        return now - self._since


def _bytes_taken(transport: Transport) -> int:
    """A number that changes with each byte that the peer takes.

    Our own buffers would not do: with TLS there are two, one behind the other, and only the first can be asked.
    """
    sock = transport.get_extra_info("socket")
    if sys.platform != "linux" or sock is None:
        return -transport.get_write_buffer_size()
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED_AT + _ACKED.size)
    return int(_ACKED.unpack_from(info, _ACKED_AT)[0])
