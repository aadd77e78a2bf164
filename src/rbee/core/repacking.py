"""Which weights ggml's processor backend copies into another order at load, and whether a model is therefore read into
memory or mapped."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Final

from rbee.core import engine_args
from rbee.core.claims import Placement
from rbee.core.model_header import ModelHeader

X86_64: Final = "x86_64"
NO_MAP: Final = "--no-mmap"

_X86_64_NAMES: Final = frozenset({X86_64, "AMD64"})
_ON_X86_64: Final = frozenset({"Q4_0", "Q4_K", "IQ4_NL", "Q2_K", "MXFP4"})
_ELSEWHERE: Final = _ON_X86_64 | {"Q8_0", "Q5_K", "Q6_K"}
"""Of ggml-cpu/repack.cpp; elsewhere the most that any processor does."""

_CONSIDERABLE: Final = Fraction(1, 10)
"""The part of a model from which on a second copy is not worth what mapping saves: a second a GiB when it is loaded."""


def repacked_bytes(header: ModelHeader, processor: str) -> int:
    """Of the tensors that have a place of their own, copied or not."""
    types = _types(processor)
    return sum(size for kind, size in header.type_bytes if kind in types)


def tied_copy_bytes(header: ModelHeader, processor: str) -> int:
    """Of an output that is tied to the embeddings, which stay as they are: it is a copy however they are loaded."""
    return header.tied_bytes if header.tied_type in _types(processor) else 0


def added_args(header: ModelHeader, args: Sequence[str], placement: Placement, processor: str) -> tuple[str, ...]:
    """What llama.cpp is told beside *args*, which were asked for: to read a model that it would else hold twice.

    *processor*: as ``uname -m`` names it. Beside a device nothing is repacked (make_cpu_buft_list of llama.cpp's
    llama-model.cpp prefers memory of the device's driver), and who asks for a map gets it.
    """
    asked = engine_args.parse(engine_args.LLAMA_CPP, args)
    if placement.devices or NO_MAP in asked or "--mmap" in asked:
        return ()
    twice = repacked_bytes(header, processor)
    return (NO_MAP,) if twice and twice >= _CONSIDERABLE * header.weight_bytes else ()


def _types(processor: str) -> frozenset[str]:
    return _ON_X86_64 if processor in _X86_64_NAMES else _ELSEWHERE
