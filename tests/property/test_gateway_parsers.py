"""Damaged requests: what we accept means the same to httptools, and the same however it is cut."""

import itertools
import os

import httptools
from hypothesis import given, settings
from hypothesis import strategies as st

from rbee.core.errors import MalformedRequest
from rbee.gateway.chunks import ChunkReader
from rbee.gateway.head import is_hopeless, parse_head
from tests.corpus import read
from tests.property.damage import EDITS, MAX_SEED, edited

INPUTS = int(os.environ.get("INPUTS", "2000"))
SEEDS = [row.raw for row in read.requests() if 0 < len(row.raw) <= MAX_SEED]


class Theirs:
    """What httptools makes of the first request."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.heads = self.messages = 0

    def on_url(self, url: bytes) -> None:
        if not self.heads:
            self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.heads:
            self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.heads += 1

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.messages += 1


def chunked(raw: bytes, edges: list[int]) -> tuple[bytes, bytes] | None:
    """The body and what follows it, given in pieces; None for one that is refused or not complete."""
    reader, body, late = ChunkReader(), b"", b""
    for start, end in itertools.pairwise(edges):
        if reader.done:
            late += raw[start:end]
            continue
        try:
            body += reader.feed(raw[start:end])
        except MalformedRequest:
            return None
    return (body, reader.rest + late) if reader.done else None


@settings(max_examples=INPUTS, deadline=None)
@given(seed=st.sampled_from(SEEDS), edits=st.lists(EDITS, max_size=4))
def test_request_that_we_accept_means_the_same_to_httptools(seed, edits):
    raw = edited(seed, edits)
    end = raw.find(b"\r\n\r\n") + 4
    if end < 4:
        return
    try:
        head = parse_head(raw[:end])
    except MalformedRequest:
        return
    assert not is_hopeless(raw[:end], 0, end)
    body = raw[end : end + head.length]
    if head.chunked:
        found = chunked(raw[end:], [0, len(raw) - end])
        if found is None:
            return
        body, rest = found
        end = len(raw) - len(rest)
    elif len(body) < head.length:
        return
    else:
        end += head.length
    theirs = Theirs()
    parser = httptools.HttpRequestParser(theirs)
    try:
        parser.feed_data(raw[:end])
    except httptools.HttpParserUpgrade:
        # It takes the body for what follows: the reason why we cut requests out by ourselves.
        assert b"upgrade" in head.fields
        return
    except httptools.HttpParserInvalidMethodError:
        return
    except httptools.HttpParserError:
        # It refuses blanks around a coding or before an extension, and trailers named as framing is (we drop them).
        assert head.chunked
        return
    assert (theirs.heads, theirs.messages) == (1, 1)
    assert (theirs.url, theirs.headers, theirs.body) == (head.target, head.headers, body)
    assert parser.get_http_version() == f"1.{head.minor}"


@settings(max_examples=INPUTS, deadline=None)
@given(
    seed=st.sampled_from([row.partition(b"\r\n\r\n")[2] for row in SEEDS if b"chunked" in row]),
    edits=st.lists(EDITS, max_size=3),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_chunks_mean_the_same_however_they_are_cut(seed, edits, cuts):
    raw = edited(seed, edits)
    whole = chunked(raw, [0, len(raw)])
    assert chunked(raw, [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]) == whole
    assert chunked(raw, list(range(len(raw) + 1)) if raw else [0, 0]) == whole
