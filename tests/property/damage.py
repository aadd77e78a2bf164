"""What hypothesis does to the bytes of a corpus."""

from hypothesis import strategies as st

MAX_SEED = 4096
"""Bytes; places are looked for among so many."""

PIECES = [
    b"\r\n", b"\r", b"\n", b" ", b"\t", b":", b"\x00", b"\xff", b"0", b"1", b"+", b"-", b";", b",", b"\x0b", b"\x85",
    b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: a\r\n", b"\r\n\r\n",
    b"Connection: close\r\n", b"Connection: upgrade\r\nUpgrade: h2c\r\n", b"HTTP/1.1", b"0\r\n\r\n",
    b"3\r\nabc\r\n", b"ffff",
]  # fmt: skip
PLACES = st.integers(0, MAX_SEED)
EDITS = st.one_of(
    st.tuples(st.just("insert"), PLACES, st.one_of(st.sampled_from(PIECES), st.binary(min_size=1, max_size=4))),
    st.tuples(st.just("replace"), PLACES, st.binary(min_size=1, max_size=2)),
    st.tuples(st.just("remove"), PLACES, st.integers(1, 12)),
)


def edited(raw: bytes, edits: list[tuple[str, int, bytes | int]]) -> bytes:
    for kind, place, what in edits:
        at = place % (len(raw) + 1)
        if isinstance(what, int):
            raw = raw[:at] + raw[at + what :]
        else:
            raw = raw[:at] + what + raw[at + len(what) * (kind == "replace") :]
    return raw
