"""What the header of a GGUF file says of a model, as far as its need of memory depends on it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelHeader:
    """Sizes in bytes, as the tensor table gives them; lists have one entry a layer.

    ``input_bytes``: the token embeddings, which stay in host memory. ``output_bytes``: output matrix and last norms;
    ``is_tied``: the file has no output matrix of its own, the embeddings serve as one; ``tied_bytes`` are those, of the
    type ``tied_type``.
    ``kv_heads``: those that are cached, 0 for a layer without a cache of its own. ``key_length``, ``value_length``:
    elements of one head in the cache; no values are cached where it is 0. ``sliding_window``: tokens, 0 for none;
    ``windowed``: the layers that keep no more than it; ``window_key_length``, ``window_value_length``: of a head in
    those, 0 for the same as elsewhere. ``state_bytes``: of one sequence in one recurrent layer, 0 for one that keeps
    no state; a layer may have both a state and cached heads. ``quantization``: the type that holds most bytes, such
    as Q4_K; ``type_bytes``: of each type, the token embeddings left out; empty where that is not known.
    """

    architecture: str
    embedding_length: int
    feed_forward_length: int
    vocabulary: int
    context_length: int
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    key_length: int
    value_length: int
    input_bytes: int
    layer_bytes: tuple[int, ...]
    output_bytes: int
    is_tied: bool
    tied_bytes: int = 0
    tied_type: str = ""
    sliding_window: int = 0
    windowed: tuple[bool, ...] = ()
    window_key_length: int = 0
    window_value_length: int = 0
    state_bytes: tuple[int, ...] = ()
    expert_count: int = 0
    expert_used_count: int = 0
    quantization: str = ""
    type_bytes: tuple[tuple[str, int], ...] = ()

    @property
    def layers(self) -> int:
        return len(self.layer_bytes)

    @property
    def weight_bytes(self) -> int:
        return self.input_bytes + sum(self.layer_bytes) + self.output_bytes


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model on disk: all its parts together. ``header`` is None where its metadata does not say enough."""

    file_bytes: int
    header: ModelHeader | None = None
