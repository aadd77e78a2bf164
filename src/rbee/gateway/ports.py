"""What the parts of the gateway need of each other."""

from typing import Any, Protocol

from rbee.core.errors import RequestError


class Transport(Protocol):
    """What we use of asyncio's transport."""

    def write(self, data: bytes) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def is_closing(self) -> bool: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def can_write_eof(self) -> bool: ...
    def write_eof(self) -> None: ...
    def get_write_buffer_size(self) -> int: ...
    def get_extra_info(self, name: str) -> Any: ...


class Client(Protocol):
    """The side of a client's connection that an exchange writes to."""

    origin: bytes | None
    """The foreign origin that may read the answer."""

    def begin(self, status: int, lines: bytes, length: int | None) -> None:
        """Prepare the head of the answer; it leaves with the first ``send``.

        *lines* are its headers, each with its end; *length* is the length of the body in bytes, None where nobody
        knows it yet.
        """

    def send(self, data: bytes, *, done: bool = False) -> None:
        """The next bytes of the body; *done*: the last ones, and the next request may begin."""

    def send_chunk(self, framed: bytes, start: int) -> None:
        """The same for one whole chunk of a chunked body as it came, its content from *start* to 2 before its end."""

    def refuse(self, error: RequestError) -> None:
        """Answer with an error, as a whole answer of its own."""

    def close_after(self) -> None:
        """End the connection with this answer."""

    def abort(self) -> None:
        """End the connection now, so that the client sees that the answer is not whole."""

    def broken(self) -> None:
        """An unexpected error of ours, in an ``except``: log it, and end this request and its connection."""

    def drop_body(self) -> None:
        """The body of the request is not needed any more."""


class Exchange(Protocol):
    """One request and its answer. Exactly one of its calls ends it."""

    def start(self, body: bytes) -> None:
        """The request is complete."""

    def tick(self, now: float) -> None:
        """Time has passed."""

    def client_paused(self) -> None: ...
    def client_resumed(self) -> None: ...

    def drop(self, status: int) -> None:
        """It ends without (more of) an answer, *status* is for the record: the client has gone, or we have failed."""
