"""Which paths the gateway handles itself, and in which shape an API tells its errors."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple


class Shape(StrEnum):
    """How an error body looks."""

    PLAIN = "plain"
    """rbee's own."""
    OPENAI = "openai"
    """rbee's own and what OpenAI's clients read, in one."""
    ANTHROPIC = "anthropic"


class Endpoint(NamedTuple):
    """``needs_slot``: whether the engine does it in one of its slots, so that it waits for one.

    ``caches``: whether the engine keeps the prompt, so that a conversation goes on faster where it was before.
    """

    shape: Shape
    needs_slot: bool = True
    caches: bool = True


INFERENCE: Final[Mapping[bytes, Endpoint]] = {
    b"/v1/chat/completions": Endpoint(Shape.OPENAI),
    b"/v1/completions": Endpoint(Shape.OPENAI),
    b"/v1/embeddings": Endpoint(Shape.OPENAI, caches=False),
    b"/v1/rerank": Endpoint(Shape.OPENAI, caches=False),
    b"/v1/responses": Endpoint(Shape.OPENAI),
    b"/v1/messages": Endpoint(Shape.ANTHROPIC),
    b"/v1/messages/count_tokens": Endpoint(Shape.ANTHROPIC, needs_slot=False, caches=False),
}
"""Relayed to workers; everything else goes to the control API."""

HEALTH: Final = frozenset((b"/livez", b"/readyz", b"/v1/health"))
"""Answered here and for everybody, so that they answer before the control API is imported."""

BODYLESS: Final = HEALTH | {b"/metrics"}
"""Anybody may ask for these, so nobody's body is held for them."""


def shape_of(path: bytes) -> Shape:
    endpoint = INFERENCE.get(path)
    return Shape.PLAIN if endpoint is None else endpoint.shape
