"""How a request begins, for the choice of a worker that has the beginning in its cache. Pure."""

from collections.abc import Sequence
from typing import Final

import msgspec

from rbee.core import affinity

_HEAD_BYTES: Final = 48
"""Of a message, in which its role stands if it stands first; else it stands at the end."""


class _Body(msgspec.Struct):
    # Raw: views of the body, which has been found to be JSON already.
    messages: list[msgspec.Raw] | msgspec.UnsetType = msgspec.UNSET
    prompt: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    input: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    system: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    instructions: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode = msgspec.json.Decoder(_Body).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


def links(model: str, body: bytes) -> list[int]:
    """The links of the beginning of *body*, which asks for *model*; none where it has no beginning that we know."""
    try:
        found = _decode(body)
        items = found.messages
        if isinstance(found.input, msgspec.Raw) and bytes(memoryview(found.input)[:1]) == b"[":
            items = _decode_items(found.input)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    seed = hash((model, _digest(found.system), _digest(found.instructions)))
    if not isinstance(items, msgspec.UnsetType):
        return _of_messages(seed, items)
    text = found.prompt if isinstance(found.input, msgspec.UnsetType) else found.input
    # As it is spelled, without its quotes (or brackets: tokens), so that it begins like the text that continues it.
    return [] if isinstance(text, msgspec.UnsetType) else affinity.text_chain(seed, memoryview(text)[1:-1])


def _of_messages(seed: int, items: Sequence[msgspec.Raw]) -> list[int]:
    """What only instructions stand for is left out: many conversations begin with the same."""
    instructions = 0
    while instructions < len(items) and _instructs(items[instructions]):
        instructions += 1
    return affinity.chain(seed, items, after=instructions)


def _instructs(message: msgspec.Raw) -> bool:
    view = memoryview(message)
    start = bytes(view[:_HEAD_BYTES])
    if b'"role"' not in start:
        start += bytes(view[-_HEAD_BYTES:])
    return b'"system"' in start or b'"developer"' in start


def _digest(raw: msgspec.Raw | msgspec.UnsetType) -> int:
    return 0 if isinstance(raw, msgspec.UnsetType) else affinity.digest(raw)
