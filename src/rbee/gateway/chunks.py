"""Take a chunked request body apart (RFC 9112 section 7.1). Extensions are ignored, trailers checked and dropped."""

import re
from enum import Enum
from typing import Final

from rbee.core.errors import MalformedRequest
from rbee.gateway.head import FIELD_LINE

MAX_LINE: Final = 1024
"""Bytes of one size line with its extensions."""

MAX_TRAILERS: Final = 8192
"""Bytes of all trailers."""

MAX_OVERHEAD: Final = 64 * 1024
"""Bytes by which sizes, line ends and trailers may outweigh the body: nobody honest sends much in chunks of two."""

_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*+;[\t -~]*+)?")


class _Part(Enum):
    SIZE = 1
    DATA = 2
    DATA_END = 3
    TRAILERS = 4


class ChunkReader:
    """``feed`` it what arrives; once ``done``, ``rest`` holds what came after the body."""

    def __init__(self) -> None:
        self.done = False
        self.rest = b""
        self._part = _Part.SIZE
        self._missing = 0
        self._trailers = 0
        self._overhead = 0

    def feed(self, data: bytes) -> bytes:
        """What *data* holds of the body. Raises MalformedRequest."""
        data = self.rest + data
        pieces: list[bytes] = []
        position = 0
        while not self.done:
            if self._part is _Part.DATA:
                piece = data[position : position + self._missing]
                if not piece:
                    break
                pieces.append(piece)
                self._missing -= len(piece)
                moved = position + len(piece)
                if not self._missing:
                    self._part = _Part.DATA_END
            else:
                moved = self._line(data, position)
                if moved == position:
                    break
            position = moved
        self.rest = data[position:]
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._overhead += position - 2 * len(body)
        if self._overhead > MAX_OVERHEAD:
            raise MalformedRequest("The body comes in chunks so small that their framing outweighs it.")
        return body

    def _line(self, data: bytes, start: int) -> int:
        """Where the line that starts at *start* ends; *start* again when it is not complete yet."""
        limit = 2 if self._part is _Part.DATA_END else MAX_LINE
        end = data.find(b"\r\n", start, start + limit)
        if end < 0:
            if len(data) - start >= limit or data.find(b"\n", start) >= 0:
                raise MalformedRequest("A chunk of the body is not well formed.")
            return start
        if self._part is _Part.SIZE:
            self._read_size(data, start, end)
        elif self._part is _Part.DATA_END:
            self._part = _Part.SIZE
        else:
            self._read_trailer(data[start : end + 2])
        return end + 2

    def _read_size(self, data: bytes, start: int, end: int) -> None:
        match = _SIZE.fullmatch(data, start, end)
        if match is None:
            raise MalformedRequest("A chunk of the body does not start with its size in hexadecimal.")
        self._missing = int(match[1], 16)
        self._part = _Part.DATA if self._missing else _Part.TRAILERS

    def _read_trailer(self, line: bytes) -> None:
        self._trailers += len(line)
        if line == b"\r\n":
            self.done = True
        elif self._trailers > MAX_TRAILERS or not FIELD_LINE.fullmatch(line):
            raise MalformedRequest("The trailers of the body are not well formed, or too long.")
