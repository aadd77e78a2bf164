"""Finds a port that nobody listens on."""

import socket


def first_free(host: str, first: int, last: int) -> int | None:
    """The lowest free port from *first* to *last*, None where there is none.

    Free is what can be bound with SO_REUSEADDR, as the engines bind: an old connection that lingers does not count.
    Somebody else may still take it before the engine does; the keeper then asks again. Raises OSError for a bad *host*.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, first, type=socket.SOCK_STREAM)[0]
    for port in range(first, last + 1):
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address[0], port, *address[2:]))
            except OSError:
                continue
            return port
    return None
