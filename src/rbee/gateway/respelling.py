"""Another value for a top-level key of a request's body, in its bytes: all the others stay as they are. Pure."""

import json
import re
from collections.abc import Mapping
from typing import Final

import msgspec

from rbee.core.errors import MalformedRequest
from rbee.gateway.asked import SLOW_LIMIT

MAX_TRIES: Final = 16
"""Places that look like the key. Each costs a pass over the body (9 ms for 31 MiB); a hostile one has millions."""

_COLON: Final = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")


class _Body(msgspec.Struct):
    """The keys that are ever given another value. Raw: of two equal keys the last wins, whatever the first holds."""

    model: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    stream: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    stream_options: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    return_progress: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode = msgspec.json.Decoder(_Body).decode


def respell(body: bytes, values: Mapping[str, bytes]) -> bytes:
    """*body* with *values* (JSON each) for keys that ``_Body`` has; a missing one is added.

    The body must be a JSON object with at least one key. Where a key is spelled with escapes or stands there twice, the
    whole body is written anew. Raises MalformedRequest where that is not possible.
    """
    try:
        return _with(body, values)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, _NotFound):
        return _written_anew(body, values)


class _NotFound(Exception):
    """The value stands nowhere that can be told from other places."""


def _with(body: bytes, values: Mapping[str, bytes]) -> bytes:
    # Each look at all of a large body, and each copy of it, holds the loop: no more of them than there must be.
    known = _decode(body)
    added = b""
    for name, value in values.items():
        old = getattr(known, name)
        if old is msgspec.UNSET:
            added += b'"%b":%b,' % (name.encode(), value)
        elif bytes(old) != value:
            body = _replaced(body, name, bytes(old), value)
    if not added:
        return body
    start = body.index(b"{") + 1
    return b"%b%b%b" % (body[:start], added, body[start:])


def _replaced(body: bytes, name: str, old: bytes, value: bytes) -> bytes:
    key = b'"%b"' % name.encode()
    start = -1
    for _ in range(MAX_TRIES):
        start = body.find(key, start + 1)
        if start < 0:
            break
        colon = _COLON.match(body, start + len(key))
        if colon is None or not body.startswith(old, colon.end()):
            continue
        changed = b"%b%b%b" % (body[: colon.end()], value, body[colon.end() + len(old) :])
        # The same key may stand deeper, or in a text: it was the right one if the body now says what it should.
        if _says(changed, name, value):
            return changed
    raise _NotFound


def _says(body: bytes, name: str, value: bytes) -> bool:
    try:
        return bytes(getattr(_decode(body), name)) == value
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False


def _written_anew(body: bytes, values: Mapping[str, bytes]) -> bytes:
    if len(body) > SLOW_LIMIT:
        raise MalformedRequest(
            f"The body spells {', '.join(values)} so that it cannot be given to a worker (escaped, twice, or beside "
            f"lone surrogates or very deep nesting), and is larger than {SLOW_LIMIT} bytes."
        )
    try:
        value = json.loads(body)
        value |= {name: json.loads(new) for name, new in values.items()}
        return json.dumps(value, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise MalformedRequest(f"The body cannot be given to a worker: {str(error)[:200]}.") from None
