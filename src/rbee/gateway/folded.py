"""The answer that is folded for one request: what of it is in memory counts against the gateway's buffer."""

from typing import Final

from rbee.gateway.buffer import Buffer
from rbee.gateway.folding import Folded, Folding
from rbee.gateway.upstream import AnswerHead

_OF_STREAMS: Final = frozenset((b"content-type", b"content-length", b"cache-control", b"x-accel-buffering"))


class FoldedAnswer:
    def __init__(self, folding: Folding, buffer: Buffer) -> None:
        self._folding = folding
        self._buffer = buffer
        self._held = 0
        self._fields: list[tuple[bytes, bytes]] = []

    def begins(self, head: AnswerHead) -> bool:
        """Whether this is the stream that was asked for: an error passes as it comes."""
        self._fields = [field for field in head.fields if field[0].lower() not in _OF_STREAMS]
        return head.status == 200 and head.is_stream

    def feed(self, data: bytes) -> None:
        """More of the stream. Raises BufferFull, and holds nothing then."""
        self._folding.feed(data)
        grown = self._folding.held - self._held
        if grown > 0 and not self._buffer.take(grown):
            self.release()
            raise self._buffer.full("Try later, or ask for a stream.")
        if grown < 0:
            self._buffer.give(-grown)
        self._held += grown

    def end(self) -> tuple[AnswerHead, bytes] | None:
        """The whole answer at the stream's end, or the error that came in it; None if it has ended too early."""
        folded: Folded | None = self._folding.result()
        if folded is None:
            return None
        fields = [(b"content-type", b"application/json; charset=utf-8"), *self._fields]
        return AnswerHead(folded.status, fields, len(folded.body)), folded.body

    def release(self) -> None:
        held, self._held = self._held, 0
        self._buffer.give(held)
