"""The corpus of answers, however the bytes are cut: what becomes of each does not depend on it."""

import itertools
import random

import pytest

from rbee.gateway.pool import Pool
from rbee.gateway.upstream import Request, Upstream
from tests.corpus import read
from tests.corpus.read import Answer
from tests.unit.gateway.upstreams import WORKER, FakeAsker, FakeTransport

pytestmark = pytest.mark.anyio
ANSWERS = read.answers()
LARGE = 5000
"""Bytes from which an answer is not fed byte by byte: it takes seconds, and shows nothing new."""


def cut(raw: bytes, dice: random.Random) -> list[bytes]:
    places = sorted(dice.randrange(len(raw) + 1) for _ in range(6))
    pieces = [raw[start:end] for start, end in itertools.pairwise([0, *places, len(raw)])]
    # A read brings no more than this at once.
    return [piece[at : at + 65536] for piece in pieces for at in range(0, len(piece), 65536)]


def feed(row: Answer, pieces: list[bytes]) -> None:
    pool, transport, asker = Pool(), FakeTransport(), FakeAsker()
    upstream = Upstream(pool, WORKER)
    pool._open.add(upstream)
    upstream._transport = transport
    upstream.ask(Request(b"", b"", is_head=row.asked == "HEAD"), asker)
    for piece in pieces:
        if not transport.aborted:
            upstream.data_received(piece)
    if not transport.aborted and row.ends != "open":
        upstream.connection_lost(None if row.ends == "close" else ConnectionResetError("reset"))
    if row.becomes == "whole":
        assert (asker.status, asker.data, asker.done) == (row.status, row.body, True)
        assert pool.idle(WORKER) == bool(row.kept)
    else:
        assert asker.reason
        assert not asker.done
        assert pool.idle(WORKER) == 0
    if row.becomes == "lost":
        assert (asker.status, asker.data) == (0, b"")


@pytest.mark.parametrize("row", ANSWERS, ids=[row.name for row in ANSWERS])
async def test_answer_means_the_same_however_it_is_cut(row):
    dice = random.Random(row.name)
    for _ in range(4):
        feed(row, cut(row.raw, dice))
    if len(row.raw) < LARGE:
        feed(row, [bytes([byte]) for byte in row.raw])
