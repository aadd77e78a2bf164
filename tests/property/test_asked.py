"""What is read of a body is what the standard parser reads of it: any number of bodies, whole and damaged.

INPUTS=100000 pytest tests/property/test_asked.py
"""

import json
import os

from rbee.core.errors import RequestError
from rbee.gateway.asked import Asked, read
from rbee.gateway.beginnings import links
from tests.fuzz.bodies import bodies

INPUTS = int(os.environ.get("INPUTS", "20000"))
SEED = int(os.environ.get("SEED", "5"))


def outcome(body: bytes) -> Asked | str:
    try:
        return read(body)
    except RequestError as error:
        return error.code


def _refuse(name: str) -> None:
    raise ValueError(name)


def expected(body: bytes) -> Asked | str:
    """The same rules by the standard parser, all of the body built."""
    try:
        value = json.loads(body.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return "malformed_request"
    if not isinstance(value, dict) or not isinstance(value.get("model"), str):
        return "invalid_field"
    if not isinstance(value.get("stream"), bool | None):
        return "invalid_field"
    return Asked(value["model"], bool(value.get("stream")))


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
