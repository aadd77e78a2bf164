"""Requests on one connection, cut anywhere: the same goes to upstreams and comes back as from one connection each.

The second of two requests that are alike is not parsed again, so this is what keeps that way honest.
"""

import itertools
import os
import re

from hypothesis import example, given, settings
from hypothesis import strategies as st

from rbee.core.auth import AuthPolicy, Principal, Role, digest
from rbee.core.routing import Route, RouteTable, Standing
from rbee.gateway.connection import ClientConnection
from rbee.gateway.door import FrontDoor
from rbee.gateway.options import GatewayOptions
from rbee.gateway.upstream import AnswerHead

INPUTS = int(os.environ.get("INPUTS", "300"))
MAX_BODY = 200
ASK = b'{"model":"a"}'
KEYS = AuthPolicy({digest("k" * 16): Principal(Role.CLIENT, "k"), digest("l" * 16): Principal(Role.CLIENT, "l")}, b"")
_OWN_ID = re.compile(rb"req-[0-9a-f]{24}")
_ANSWER = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n(.*?\r\n)\r\n", re.DOTALL)
_CHANGING = re.compile(rb"(?:connection: close|x-rbee-queue-ms: \d+)\r\n")


class Transport:
    """What was written, and whether our side has ended."""

    def __init__(self):
        self.written = b""
        self.closed = False

    def write(self, data):
        assert not self.closed
        self.written += data

    def close(self):
        self.closed = True

    abort = write_eof = close

    def is_closing(self):
        return self.closed

    def can_write_eof(self):
        return True

    def pause_reading(self): ...
    def resume_reading(self): ...


class Pool:
    """Workers and the control API, who echo what they get: at once, or when they are told to."""

    def __init__(self, *, at_once):
        self.asked = []
        self._at_once = at_once
        self._open = []

    def ask(self, address, request, asker, *, fresh=False):
        self.asked.append(_OWN_ID.sub(b"ID", request.head) + request.body)
        if self._at_once:
            self._answer(request, asker)
        else:
            self._open.append((request, asker))
        return self

    def answer(self):
        while self._open:
            self._answer(*self._open.pop(0))

    def _answer(self, request, asker):
        body = b"" if request.is_head else b"[%b]" % request.body
        asker.answered(AnswerHead(200, [(b"Content-Type", b"application/json")], len(body)), body, True)

    def retain(self, ready, known): ...
    def abandon(self): ...
    def pause(self): ...
    def resume(self): ...


def opened(pool):
    routes = RouteTable()
    options = GatewayOptions("/control", max_body=MAX_BODY, buffer_limit=1000, cors_origins=("http://page",))
    door = FrontDoor(options, routes, KEYS, lambda usage: None, "1")
    door.control_up, door.adopting, door.pool = True, False, pool
    routes.publish(Route("w1", "synthetic:a", alias="a", standing=Standing.READY, host="127.0.0.1", port=1, slots=4))
    return door


def connected(door):
    connection, transport = ClientConnection(door, lambda joined: None, lambda left: None), Transport()
    connection.connection_made(transport)
    return connection, transport


def answers(written, methods):
    """The whole answers in *written*, as far as they are the same for the same request."""
    found, at = [], 0
    while match := _ANSWER.match(written, at):
        length = re.search(rb"content-length: (\d+)", match[2])
        size = int(length[1]) if length and methods[len(found)] != b"HEAD" else 0
        at = match.end() + size
        whole = _CHANGING.sub(b"", match[0]) + written[match.end() : at]
        found.append((int(match[1]), _OWN_ID.sub(b"ID", whole)))
    assert at == len(written)
    return found


def each_alone(requests):
    """What each request gets on a connection of its own, what upstreams get of it, and whether it ends there."""
    told = []
    for method, raw in requests:
        pool = Pool(at_once=True)
        connection, transport = connected(opened(pool))
        connection.data_received(raw)
        (answer,) = answers(transport.written, [method])
        told.append((answer, pool.asked, transport.closed))
    return told


def request(method, path, version, lines, length, body):
    lines = [b"%b %b HTTP/%b" % (method, path, version), *lines]
    if length is not None:
        lines.append(b"Content-Length: " + length % len(body))
        return method, b"\r\n".join([*lines, b"", b""]) + body
    if body:
        chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        return method, b"\r\n".join([*lines, b"Transfer-Encoding: chunked", b"", b""]) + chunk
    return method, b"\r\n".join([*lines, b"", b""])


JSON = b"Content-Type: application/json"
KEY = b"Authorization: Bearer " + b"k" * 16
HOST = b"Host: localhost"
USUAL = (HOST, KEY, JSON)
TEXT = (HOST, KEY, b"Content-Type: text/plain")
LINES = st.sampled_from(
    [
        USUAL,
        USUAL,
        USUAL,
        (HOST, b"X-Api-Key: " + b"l" * 16, JSON),
        (HOST, b"X-Api-Key: wrong", JSON),
        TEXT,
        (b"Host: elsewhere", KEY, JSON),
        (*USUAL, b"X-Request-Id: mine"),
        (*USUAL, b"Expect: 100-continue"),
        (*USUAL, b"Origin: http://page"),
        (*USUAL, b"Origin: http://other"),
        (*USUAL, b"Origin: http://localhost"),
        (*USUAL, b"Connection: close"),
        (*USUAL, b"Connection: keep-alive, x-mine", b"X-Mine: 1"),
        (*USUAL, b"Upgrade: h2c", b"Connection: upgrade"),
    ]
)
BODIES = st.sampled_from(
    [ASK, ASK + b" " * 87, ASK + b" " * (MAX_BODY - len(ASK)), ASK + b" " * MAX_BODY, b"", b"[", b'{"model":"b"}']
)


def posts(version, lines, length, bodies):
    return [request(b"POST", b"/v1/completions", version, lines, length, body) for body in bodies]


WHOLE = posts(b"1.1", USUAL, b"%d", [ASK])[0][1]
HIDDEN = posts(b"1.1", USUAL, b"%d", [WHOLE, ASK])
"""The first one's body is a request, to which its own head is alike."""
ODD = [(b"POST", WHOLE), (b"XPOST", b"X" + WHOLE)]

# Alike, as on most connections: each of them after the first may go the short way.
ALIKE = st.builds(
    posts,
    st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0"]),
    LINES,
    st.sampled_from([b"%d", b"%d", b"%d", b"%05d", b"%d ", None]),
    st.lists(BODIES, min_size=1, max_size=4),
)
OTHERS = st.sampled_from(
    [
        [request(b"GET", b"/livez", b"1.1", USUAL, None, b"")],
        [request(b"HEAD", b"/v1/a", b"1.1", USUAL, None, b"")],
        [request(b"POST", b"/v1/a", b"1.1", USUAL, b"%d", ASK)],
        [request(b"TRACE", b"/v1/completions", b"1.1", USUAL, b"%d", ASK)],
        HIDDEN,
        ODD,
        posts(b"1.0", (*USUAL, b"Connection: keep-alive"), b"%d", [ASK, b"", ASK]),
    ]
)
REQUESTS = st.lists(st.one_of(ALIKE, OTHERS), min_size=1, max_size=3).map(lambda runs: [*itertools.chain(*runs)])


def in_pieces(requests, cuts, together):
    """The bytes of all, cut between two requests (save behind those in *together*), and at *cuts*."""
    ends = [*itertools.accumulate(len(raw) for _, raw in requests)]
    stream = b"".join(raw for _, raw in requests)
    between = {end for place, end in enumerate(ends) if place not in together}
    places = sorted({0, ends[-1], *between, *(cut % ends[-1] for cut in cuts)})
    return [stream[start:end] for start, end in itertools.pairwise(places)]


@settings(max_examples=INPUTS, deadline=None)
@given(
    requests=REQUESTS,
    cuts=st.lists(st.integers(0, 10**6), max_size=4),
    together=st.sets(st.integers(0, 11), max_size=4),
    answered_every=st.integers(0, 3),
)
@example(requests=posts(b"1.1", TEXT, b"%d", [b"", ASK]), cuts=[], together=set(), answered_every=0)
@example(requests=HIDDEN, cuts=[len(HIDDEN[0][1]) - len(WHOLE)], together=set(), answered_every=0)
@example(requests=[*ODD, *ODD], cuts=[len(WHOLE) + 1], together=set(), answered_every=0)
def test_requests_on_one_connection_are_each_what_they_are_alone(requests, cuts, together, answered_every):
    """Answers come at once (*answered_every* is 0), or after so many pieces."""
    pool = Pool(at_once=not answered_every)
    door = opened(pool)
    connection, transport = connected(door)
    for place, piece in enumerate(in_pieces(requests, cuts, together), 1):
        if not transport.closed:
            connection.data_received(piece)
        if answered_every and place % answered_every == 0:
            pool.answer()
    pool.answer()
    written = transport.written.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    found = answers(written, [method for method, _ in requests])
    alone = each_alone(requests)
    ended = next((place for place, told in enumerate(alone, 1) if told[2]), len(alone))
    if len(found) < ended:
        # Who is refused by its head while its body is still to come is not read any further.
        assert transport.closed
        assert found[-1][0] >= 400
        ended = len(found)
    assert found == [told[0] for told in alone[:ended]]
    assert pool.asked == [asked for told in alone[:ended] for asked in told[1]]
    connection.connection_lost(None)
    assert door.buffer.used == 0
