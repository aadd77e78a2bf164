"""Both ends of an upstream's connection, without sockets."""

import anyio

WORKER = ("127.0.0.1", 8081)


class FakeTransport:
    def __init__(self):
        self.reading = True
        self.aborted = False

    def write(self, data): ...
    def is_closing(self):
        return self.aborted

    def get_write_buffer_size(self):
        return 0

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True

    def abort(self):
        self.aborted = True


class FakeAsker:
    """``status`` is 0 before the answer's head."""

    def __init__(self):
        self.status = 0
        self.data = b""
        self.done = False
        self.reason = None
        self.ended = anyio.Event()

    def answered(self, head, data, done):
        self.status = head.status if head is not None else self.status
        self.data += data
        self.done = done
        if head is not None:
            self.head = (head.status, head.length, head.lines)

    def chunk(self, framed, start):
        assert not self.done
        self.data += framed[start:-2]

    def lost(self, reason, stale):
        self.reason = reason
        self.ended.set()
