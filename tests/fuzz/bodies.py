"""Bodies of requests at random: JSON of all kinds with the fields that the gateway reads, and damaged ones.

``outcome`` is what the gateway makes of one, ``expected`` what the standard parser makes of it by the same rules.
"""

import json
from collections.abc import Iterator
from random import Random

from rbee.core.errors import RequestError
from rbee.gateway.asked import Asked, read

_STRINGS = [
    '"a"', '"synthetic:x"', '""', '"\\u00e9"', '"é"', '"\\ud800"', '"\\ud83d\\ude00"', '"\\""', '"\\\\"', '"model"',
    '"\\/\\b\\f\\n\\r\\t"', '"\x7f"', '"{"', '"]"', '"' + "x" * 300 + '"', '"\\u0000"', '"😀"',
]  # fmt: skip
_KEYS = [
    '"model"', '"model"', '"stream"', '"messages"', '"mod\\u0065l"', '"\\u0073tream"', '"mode"', '"models"', '""',
    '"MODEL"', '"prompt"', '"model "', '"é"', '"\\ud800"',
]  # fmt: skip
_SCALARS = [
    "true", "false", "null", "0", "-0", "1", "-12", "1.5", "1e5", "1E+400", "-1e-400", "123456789012345678901234567890",
    "0.0", "9" * 60,
]  # fmt: skip
_WRONG = [
    "NaN", "Infinity", "-Infinity", "01", "+1", ".5", "1.", "1e", "True", "nul", "'a'", '"\t"', '"\\x"', '"\\u12"',
    "undefined", "-", "0x1", '"', "[", "{", "]", ",", ":",
]  # fmt: skip
_SPACES = ["", "", "", " ", "\n", "\t\r ", "  "]
_BYTES = [
    b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\x00", b"\\", b'"', b"{", b"}", b"[", b"]", b",", b":", b"\xef\xbb\xbf",
    b"/**/", b"0", b"e", b"\\u", b"\xc3", b" ",
]  # fmt: skip


def bodies(seed: int, count: int) -> Iterator[bytes]:
    """*count* bodies, always the same ones for a *seed*; about half of them are damaged."""
    random = Random(seed)
    for _ in range(count):
        body = _whole(random)
        yield _damaged(random, body) if random.random() < 0.5 else body


def _whole(random: Random) -> bytes:
    if random.random() < 0.05:
        text = _value(random, 0)
    elif random.random() < 0.01:
        depth = random.choice([10, 200, 700, 1500, 3000])
        text = (
            '{"model":"a","x":' + random.choice(["[", '{"a":']) * depth + "1" + random.choice(["]", "}"]) * depth + "}"
        )
    else:
        text = _object(random, 0)
    space = random.choice(_SPACES)
    return (space + text + random.choice(_SPACES)).encode("utf-8", "surrogatepass")


def _object(random: Random, depth: int) -> str:
    space = random.choice(_SPACES)
    members = [_member(random, depth, space) for _ in range(random.choice([0, 1, 2, 3, 4, 6]))]
    if not depth and random.random() < 0.7:
        members.insert(random.randrange(len(members) + 1), f'"model"{space}:{space}{random.choice(_STRINGS)}')
    return "{" + space + (space + "," + space).join(members) + space + "}"


def _member(random: Random, depth: int, space: str) -> str:
    key = random.choice(_KEYS)
    value = random.choice(["true", "false", "null"]) if key == '"stream"' and random.random() < 0.7 else None
    return f"{key}{space}:{space}{value or _value(random, depth + 1)}"


def _value(random: Random, depth: int) -> str:
    kind = random.random()
    if kind < 0.4 or depth > 5:
        return random.choice(_STRINGS)
    if kind < 0.75:
        return random.choice(_SCALARS)
    if kind < 0.76:
        return random.choice(_WRONG)
    if kind < 0.78:
        return json.dumps("".join(chr(random.randrange(0x11000)) for _ in range(5)))
    if kind < 0.9:
        return "[" + ",".join(_value(random, depth + 1) for _ in range(random.randrange(4))) + "]"
    return _object(random, depth)


def _damaged(random: Random, body: bytes) -> bytes:
    for _ in range(random.choice([1, 1, 2, 3])):
        at = random.randrange(len(body) + 1)
        cut = random.choice([0, 0, 1, 1, 2, 5])
        into = random.choice([b"", random.choice(_BYTES), random.choice(_WRONG).encode(), body[at : at + 4]])
        body = body[:at] + into + body[at + cut :]
    return body[: random.randrange(len(body) + 1)] if random.random() < 0.1 else body


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
