"""How many clients there may be at once, so that descriptors are left for the workers. Pure."""

from typing import Final

RESERVED: Final = 48
"""Descriptors that are no client's: a hive without workers holds 20 (its loop, sockets, lock and database), and the
rest is for files that are open for a moment, for forks and for clients that are being turned away."""

FOR_EACH_WORKER: Final = 4
"""Two pidfds, its beat and its health check."""

FOR_EACH_CLIENT: Final = 3
"""Its own, and while its request is relayed one to the worker; to the control API two, as both ends are ours."""

FEWEST: Final = 4
"""Clients that are let in however low the limit is."""

TURNED_AWAY: Final = 16
"""Clients beyond the capacity that are told so before they are closed."""

IDLE_FOR: Final = 1.0
"""Seconds without a request after which a connection may be ended for a new one: whoever has just connected, or has
just got an answer, may be about to ask."""


def capacity(descriptors: int, workers: int) -> int:
    """Clients that may be connected at once where this process may have so many *descriptors*."""
    return max(FEWEST, (descriptors - RESERVED - FOR_EACH_WORKER * workers) // FOR_EACH_CLIENT)
