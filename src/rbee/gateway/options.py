"""What the gateway is told: its part of the settings, nothing else."""

import sys
from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """Sizes are bytes, times seconds; a ``stall_timeout`` of 0 waits for ever.

    ``allowed_hosts`` are names (with or without a port) beside loopback; ``cors_origins`` are whole origins
    (``https://chat.example``) or ``*``. ``descriptors`` is how many the whole process may have.
    """

    control_socket: str
    descriptors: int = sys.maxsize
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body: int = 32 * MIB
    max_header: int = 64 * 1024
    buffer_limit: int = 256 * MIB
    header_timeout: float = 10.0
    idle_timeout: float = 75.0
    stall_timeout: float = 0.0
    queue_limit: int = 512
    queue_timeout: float = 60.0
    keepalive_after: float = 15.0
    affinity: bool = True
