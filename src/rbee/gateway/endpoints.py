"""Which paths the gateway handles itself, and in which shape an API tells its errors."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Shape(StrEnum):
    """How an error body looks."""

    PLAIN = "plain"
    """rbee's own."""
    OPENAI = "openai"
    """rbee's own and what OpenAI's clients read, in one."""
    ANTHROPIC = "anthropic"


INFERENCE: Final[Mapping[bytes, Shape]] = {
    b"/v1/chat/completions": Shape.OPENAI,
    b"/v1/completions": Shape.OPENAI,
    b"/v1/embeddings": Shape.OPENAI,
    b"/v1/rerank": Shape.OPENAI,
    b"/v1/responses": Shape.OPENAI,
    b"/v1/messages": Shape.ANTHROPIC,
    b"/v1/messages/count_tokens": Shape.ANTHROPIC,
}
"""Relayed to workers; everything else goes to the control API."""

HEALTH: Final = frozenset((b"/livez", b"/readyz", b"/v1/health"))
"""Answered here and for everybody, so that they answer before the control API is imported."""

BODYLESS: Final = HEALTH | {b"/metrics"}
"""Anybody may ask for these, so nobody's body is held for them."""


def shape_of(path: bytes) -> Shape:
    return INFERENCE.get(path, Shape.PLAIN)
