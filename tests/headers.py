"""What a header says of a small model, for tests that need no file."""

from dataclasses import replace
from typing import Any

from rbee.core.model_header import ModelHeader


def header(*type_bytes: tuple[str, int], **changes: Any) -> ModelHeader:
    """A model of one layer, whose tensors have these types and bytes."""
    model = ModelHeader(
        architecture="llama",
        embedding_length=64,
        feed_forward_length=256,
        vocabulary=100,
        context_length=512,
        heads=(4,),
        kv_heads=(4,),
        key_length=16,
        value_length=16,
        input_bytes=0,
        layer_bytes=(sum(size for _, size in type_bytes),),
        output_bytes=0,
        is_tied=True,
        type_bytes=type_bytes,
    )
    return replace(model, **changes)
