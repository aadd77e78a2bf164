"""Damaged answers: each says the same on a connection that was used before as on a new one.

There, the second of two that are alike is not parsed again.
"""

import itertools
import os

from hypothesis import example, given, settings
from hypothesis import strategies as st

from rbee.gateway.pool import Pool
from rbee.gateway.upstream import Request, Upstream
from tests.corpus import read
from tests.property.damage import EDITS, MAX_SEED, edited
from tests.unit.gateway.upstreams import WORKER, FakeAsker, FakeTransport

INPUTS = int(os.environ.get("INPUTS", "1000"))
USUAL = [
    b"HTTP/1.1 200 OK\r\nContent-Type: a\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size for size in (0, 5, 12)
]
ODD = [row.raw for row in read.answers() if 0 < len(row.raw) <= MAX_SEED]


class Asker(FakeAsker):
    head = None

    def lost(self, reason, stale):
        self.reason = reason


def told(pool: Pool, upstream: Upstream, pieces: list[bytes], *, is_head: bool) -> tuple[object, ...]:
    """What becomes of a request that is answered with *pieces*, at last whether the connection is kept."""
    asker = Asker()
    upstream.ask(Request(b"", b"", is_head), asker)
    for piece in pieces:
        if not asker.done and asker.reason is None:
            upstream.data_received(piece)
    kept = pool.idle(WORKER) == 1
    pool._idle.clear()
    return asker.head, asker.data, asker.done, asker.reason is None, kept


def connected() -> tuple[Pool, Upstream]:
    pool = Pool()
    upstream = Upstream(pool, WORKER)
    upstream._transport = FakeTransport()
    pool._open.add(upstream)
    return pool, upstream


@settings(max_examples=INPUTS, deadline=None)
@given(
    first=st.one_of(
        st.sampled_from(USUAL), st.builds(edited, st.sampled_from(USUAL + ODD), st.lists(EDITS, max_size=2))
    ),
    second=st.one_of(
        st.sampled_from(USUAL), st.builds(edited, st.sampled_from(USUAL * 5 + ODD), st.lists(EDITS, max_size=2))
    ),
    cuts=st.lists(st.integers(0, MAX_SEED), max_size=3),
    is_head=st.booleans(),
)
@example(first=USUAL[1], second=USUAL[2], cuts=[], is_head=True)
@example(first=USUAL[1], second=USUAL[2] + USUAL[0], cuts=[], is_head=False)
def test_answer_says_the_same_on_a_kept_connection_as_on_a_new_one(first, second, cuts, is_head):
    pool, upstream = connected()
    if not told(pool, upstream, [first], is_head=False)[-1]:
        return
    places = sorted({0, len(second), *(cut % (len(second) + 1) for cut in cuts)})
    pieces = [second[start:end] for start, end in itertools.pairwise(places)]
    assert told(pool, upstream, pieces, is_head=is_head) == told(*connected(), pieces, is_head=is_head)
