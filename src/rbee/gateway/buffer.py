"""What of bodies and answers is in memory, all requests together. Pure."""

from typing import Final

from rbee.core.errors import BufferFull

RETRY_AFTER: Final = 1.0
"""Seconds; what others hold is given back when their worker answers, or their answer ends."""


class Buffer:
    """At most *limit* bytes; who takes some gives them back."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self, size: int) -> bool:
        """Whether *size* more bytes may be held; they are counted if so."""
        if self.used + size > self.limit:
            return False
        self.used += size
        return True

    def give(self, size: int) -> None:
        self.used -= size

    def full(self, advice: str) -> BufferFull:
        """The error of one who could take no more."""
        message = f"The bodies and answers in memory reach gateway.buffer_limit ({self.limit} bytes). {advice}"
        return BufferFull(message, retry_after=RETRY_AFTER)
