"""A head without its length: most heads on one connection differ in nothing else, and need not be read twice. Pure."""

import re
from typing import Final

_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*\r\n", re.IGNORECASE)
_MAX_DIGITS: Final = 18

LARGEST: Final = 8192
"""Bytes of a head that is kept: connections that only wait would hold a header's limit, each more than once."""


class Likeness:
    """What a whole head with one Content-Length says beside the digits of it.

    Whoever has read that head knows what every head of its likeness says: they are the same, byte for byte.
    """

    __slots__ = ("_after", "_before", "_start")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before = before
        self._after = after
        self._start = len(before)

    @classmethod
    def of(cls, head: bytes) -> "Likeness | None":
        """The likeness of *head*, up to and with its empty line.

        None where it has no length, or more than one, or is too large to be kept.
        """
        if len(head) > LARGEST:
            return None
        found = _LENGTH.search(head)
        # A search from its last byte on: two of them may share the line's end between them.
        if found is None or _LENGTH.search(head, found.end() - 2) is not None:
            return None
        return cls(head[: found.start(1)], head[found.end(1) :])

    def read(self, data: bytes) -> tuple[int, int] | None:
        """The length in a head at the start of *data*, and where that head ends; None for any other head."""
        start = self._start
        if not data.startswith(self._before):
            return None
        stop = data.find(b"\r", start, start + _MAX_DIGITS + 1)
        if stop < 0:
            # Blanks behind the digits, or none of it yet.
            return None
        digits = data[start:stop]
        if not digits.isdigit() or not data.startswith(self._after, stop):
            return None
        return int(digits), stop + len(self._after)
