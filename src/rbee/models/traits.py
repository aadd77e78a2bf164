"""From the keys and tensors of a GGUF file to what its need of memory depends on: how each architecture caches."""

from typing import Final, TypeGuard

from rbee.core.model_header import ModelHeader
from rbee.models.gguf import MAX_KEPT, Tensors, Value

_PERIODS: Final = {
    "afmoe": 4,
    "cohere2": 4,
    "exaone-moe": 4,
    "exaone4": 4,
    "gemma-embedding": 6,
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gpt-oss": 2,
    "llama4": 4,
    "mellum": 4,
    "olmo2": 4,
    "plamo3": 8,
}
"""Every so many layers, the last one sees everything (load_arch_hparams in llama.cpp's src/models/*.cpp). The key
sliding_window_pattern comes first; an architecture that is in neither has no windowed layers."""
_DENSE_FIRST: Final = {"cohere2moe": 4, "modern-bert": 3, "smallthinker": 4}
"""The same, but the first of so many layers sees everything."""
_WINDOWS: Final = {"gemma2": 4096, "llama4": 8192}
"""The window where the header does not say it; llama4's is always this one."""
_WINDOWS_OFF: Final = frozenset({"phi3", "phimoe"})
"""Their window is in the header, and llama.cpp does not use it."""
_WITHOUT_CACHE: Final = frozenset(
    {
        "bert",
        "dream",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "llada",
        "llada-moe",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "rnd1",
        "wavtokenizer-dec",
    }
)
"""They see the whole text at once (create_memory in llama.cpp's llama-model.cpp)."""
_RECURRENT_MARKS: Final = ("ssm_", "shortconv", "time_mix_")
_MAX_NUMBER: Final = 2**26
"""A count or length above it is no model's (the longest context is 10 M tokens), and counts as missing."""
_MAX_STATE_BYTES: Final = 2**40
_FLOAT_BYTES: Final = 4
"""Recurrent states are kept as F32, whatever the type of the cache."""


def _is_count(value: Value | None) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= _MAX_NUMBER


class _Keys:
    """Reads the keys that carry the architecture's name; a value of the wrong kind counts as missing."""

    def __init__(self, keys: dict[str, Value], architecture: str) -> None:
        self._keys = keys
        self._architecture = architecture

    def get(self, name: str) -> Value | None:
        return self._keys.get(f"{self._architecture}.{name}")

    def number(self, name: str, otherwise: int = 0) -> int:
        value = self.get(name)
        if isinstance(value, tuple):
            value = max(value, default=None)
        return value if _is_count(value) else otherwise

    def by_layer(self, name: str, layers: int) -> tuple[int, ...] | None:
        """One number for each layer, from one for all or from a list of as many; None for anything else."""
        value = self.get(name)
        if _is_count(value):
            return (value,) * layers
        if isinstance(value, tuple) and len(value) == layers:
            numbers = tuple(one for one in value if _is_count(one))
            return numbers if len(numbers) == layers else None
        return None


def header_of(keys: dict[str, Value], tokens: int, tensors: Tensors) -> ModelHeader | None:
    """What can be said of a model whose first part has these *keys*, and so many *tokens*; None: not enough."""
    architecture = keys.get("general.architecture")
    if not isinstance(architecture, str) or tensors.unknown_type is not None:
        return None
    of = _Keys(keys, architecture)
    layers, embedding = of.number("block_count"), of.number("embedding_length")
    if not 0 < layers <= MAX_KEPT or not embedding:
        return None
    recurrent = _recurrent_layers(tensors, layers)
    heads = of.by_layer("attention.head_count", layers)
    if heads is None:
        if not all(recurrent) or of.get("attention.head_count") is not None:
            return None
        heads = (0,) * layers
    kv_heads = heads if of.get("attention.head_count_kv") is None else of.by_layer("attention.head_count_kv", layers)
    if kv_heads is None:
        return None
    state = _state_bytes(of, embedding, max(heads))
    if state > _MAX_STATE_BYTES:
        return None
    window, windowed = _windowed_layers(of, architecture, layers)
    each = embedding // max(heads) if max(heads) else 0
    beyond = sum(size for layer, size in tensors.layers.items() if layer >= layers)
    is_latent = of.number("attention.key_length_mla") > 0 and of.number("attention.value_length_mla") > 0
    return ModelHeader(
        architecture=architecture,
        embedding_length=embedding,
        feed_forward_length=_widest(of),
        vocabulary=tensors.vocabulary or tokens or of.number("vocab_size"),
        context_length=of.number("context_length"),
        heads=heads,
        kv_heads=_caching_heads(of, architecture, kv_heads, tensors),
        # An indexer (deepseek32) caches a key of its own for each token, beside the one of attention.
        key_length=of.number("attention.key_length", each) + of.number("attention.indexer.key_length"),
        # With latent attention, keys hold all that is cached (has_v in llama.cpp's llama-kv-cache.cpp).
        value_length=0 if is_latent else of.number("attention.value_length", each),
        window_key_length=of.number("attention.key_length_swa"),
        window_value_length=of.number("attention.value_length_swa"),
        input_bytes=tensors.input_bytes,
        layer_bytes=tuple(tensors.layers.get(layer, 0) for layer in range(layers)),
        output_bytes=tensors.output_bytes + beyond,
        is_tied=not tensors.has_output,
        tied_bytes=0 if tensors.has_output else tensors.embedding_bytes,
        tied_type="" if tensors.has_output else tensors.embedding_type,
        sliding_window=window,
        windowed=windowed,
        state_bytes=tuple(state if is_one else 0 for is_one in recurrent),
        expert_count=of.number("expert_count"),
        expert_used_count=of.number("expert_used_count"),
        quantization=max(tensors.by_type, key=lambda name: tensors.by_type[name], default=""),
        type_bytes=tuple(tensors.beyond_input.items()),
    )


def _recurrent_layers(tensors: Tensors, layers: int) -> tuple[bool, ...]:
    return tuple(
        any(mark.startswith(_RECURRENT_MARKS) for mark in tensors.marks.get(layer, ())) for layer in range(layers)
    )


def _caching_heads(of: _Keys, architecture: str, kv_heads: tuple[int, ...], tensors: Tensors) -> tuple[int, ...]:
    """The heads whose keys and values are cached: none in a layer that only keeps a state, or uses another's cache."""
    layers = len(kv_heads)
    if architecture in _WITHOUT_CACHE:
        return (0,) * layers
    own = layers - of.number("attention.shared_kv_layers")
    if architecture == "gemma3n":
        own = 20
    recurrent = _recurrent_layers(tensors, layers)
    # A recurrent layer with keys of its own does both (falcon-h1).
    attends = [
        any(mark in ("attn_k", "attn_kv_a_mqa", "attn_v") for mark in tensors.marks.get(layer, ()))
        for layer in range(layers)
    ]
    return tuple(
        0 if layer >= own or (recurrent[layer] and not attends[layer]) else count
        for layer, count in enumerate(kv_heads)
    )


def _windowed_layers(of: _Keys, architecture: str, layers: int) -> tuple[int, tuple[bool, ...]]:
    """The window in tokens, and which layers keep no more than it; 0 and none where all keep everything."""
    said = of.get("attention.sliding_window")
    window = of.number("attention.sliding_window", _WINDOWS.get(architecture, 0))
    if architecture == "llama4" and said != 0:
        window = _WINDOWS[architecture]
    pattern = of.get("attention.sliding_window_pattern")
    period = _DENSE_FIRST.get(architecture) or _PERIODS.get(architecture)
    if _is_count(pattern):
        period = pattern
    if not window or architecture in _WINDOWS_OFF:
        return 0, (False,) * layers
    if isinstance(pattern, tuple):
        windowed = tuple(bool(one) for one in pattern) if len(pattern) == layers else (False,) * layers
    elif period is None:
        windowed = (False,) * layers
    elif architecture in _DENSE_FIRST:
        windowed = tuple(period == 0 or layer % period != 0 for layer in range(layers))
    else:
        windowed = tuple(period == 0 or layer % period < period - 1 for layer in range(layers))
    return (window, windowed) if any(windowed) else (0, windowed)


def _widest(of: _Keys) -> int:
    """Elements of the widest layer that feeds forward, all experts together that one token uses."""
    experts = of.number("expert_feed_forward_length") * of.number("expert_used_count")
    return max(of.number("feed_forward_length"), experts + of.number("expert_shared_feed_forward_length"))


def _state_bytes(of: _Keys, embedding: int, heads: int) -> int:
    """Of one sequence in one recurrent layer (n_embd_r and n_embd_s in llama.cpp's llama-hparams.cpp)."""
    kernel = of.number("ssm.conv_kernel")
    if head_size := of.number("wkv.head_size"):
        elements = embedding * (of.number("token_shift_count", 2) + head_size)
    elif cached := of.number("shortconv.l_cache"):
        elements = embedding * (cached - 1)
    elif head := of.number("kda.head_dim"):
        elements = heads * head * (3 * (kernel - 1 if kernel else 3) + head)
    else:
        inner, state = of.number("ssm.inner_size"), of.number("ssm.state_size")
        groups = of.number("ssm.group_count")
        elements = max(0, kernel - 1) * (inner + 2 * groups * state) + state * inner
    return elements * _FLOAT_BYTES
