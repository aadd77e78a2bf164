"""How llama.cpp is set up where memory depends on it: what the worker sets, and what admission therefore counts.
The keeper imports it: no dataclasses here."""

from collections.abc import Mapping
from typing import Final

from rbee.core.engine_args import Value

BATCH: Final = 512
"""Prompt tokens a batch: all counters stand still during one, so a larger batch would look like a hang."""

LARGEST_BATCH: Final = 8192
ALL_LAYERS: Final = 9999

CHECKPOINTS: Final = 2
"""Saved windows (or recurrent states) a slot: one prompt leaves two. llama.cpp's own 32 are never bounded by bytes: a
long chat with Gemma 3 27B would pile up 13 GiB of host memory a slot."""


def embeds(args: Mapping[str, Value]) -> bool:
    """Whether every token of a prompt has an output, not only the last."""
    return "--embedding" in args or "--reranking" in args


def batch_of(ctx_size: int, args: Mapping[str, Value]) -> int:
    """Tokens computed at once. An embedding model needs a whole input in one batch (llama.cpp refuses longer ones)."""
    return max(BATCH, min(ctx_size, LARGEST_BATCH)) if embeds(args) else BATCH


def prompt_cache_mib(prompt_cache_bytes: int) -> int:
    """The unit in which llama.cpp takes it; 0 is none."""
    return prompt_cache_bytes >> 20
