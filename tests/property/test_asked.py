"""What is read of a body is what the standard parser reads of it: any number of bodies, whole and damaged.

INPUTS=100000 pytest tests/property/test_asked.py
"""

import os

from rbee.gateway.beginnings import links
from tests.fuzz.bodies import bodies, expected, outcome

INPUTS = int(os.environ.get("INPUTS", "20000"))
SEED = int(os.environ.get("SEED", "5"))


def test_a_body_is_read_as_the_standard_parser_reads_it():
    seen: dict[str, int] = {}
    for body in bodies(SEED, INPUTS):
        ours, theirs = outcome(body), expected(body)
        # Strings that nobody asked for are not looked into for bytes that are not UTF-8; the engine does.
        if theirs != "malformed_request" or _is_utf8(body):
            assert ours == theirs, body
        kind = ours if isinstance(ours, str) else "read"
        seen[kind] = seen.get(kind, 0) + 1
        links("m", body)
    # The bodies reach each outcome often, or they would show nothing.
    assert all(seen.get(kind, 0) > INPUTS / 20 for kind in ("read", "malformed_request", "invalid_field")), seen


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True
