import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.core.errors import MalformedRequest
from rbee.gateway.chunks import MAX_OVERHEAD, ChunkReader


def test_body_is_taken_out_of_its_chunks_and_the_rest_is_left():
    reader = ChunkReader()
    assert reader.feed(b"3\r\nabc\r\nA;name=value\r\n0123456789\r\n0\r\n\r\nGET /") == b"abc0123456789"
    assert reader.done
    assert reader.rest == b"GET /"


def test_trailers_are_dropped():
    reader = ChunkReader()
    assert reader.feed(b"1\r\na\r\n0\r\nAuthorization: Bearer x\r\nB: c\r\n\r\nrest") == b"a"
    assert reader.done
    assert reader.rest == b"rest"


def test_many_small_chunks_are_refused_before_their_framing_weighs_much():
    reader, chunk = ChunkReader(), b"2\r\nab\r\n"
    enough = MAX_OVERHEAD // 3
    assert len(reader.feed(chunk * enough)) == 2 * enough
    with pytest.raises(MalformedRequest, match="outweighs"):
        reader.feed(chunk)


def test_framing_does_not_add_up_where_the_body_is_larger():
    reader, chunk = ChunkReader(), b"%x\r\n%b\r\n" % (100, b"x" * 100)
    for _ in range(MAX_OVERHEAD // 100):
        assert len(reader.feed(chunk * 100)) == 10_000


@given(
    st.lists(st.binary(min_size=1, max_size=20), max_size=6),
    st.lists(st.integers(0, 200), max_size=8),
    st.binary(max_size=9),
)
def test_body_does_not_depend_on_how_it_is_cut(chunks, cuts, rest):
    wire = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n" + rest
    edges = [0, *sorted(min(cut, len(wire)) for cut in cuts), len(wire)]
    reader, pieces, late = ChunkReader(), [], b""
    for start, end in itertools.pairwise(edges):
        if reader.done:
            late += wire[start:end]
        else:
            pieces.append(reader.feed(wire[start:end]))
    assert reader.done
    assert b"".join(pieces) == b"".join(chunks)
    assert reader.rest + late == rest
