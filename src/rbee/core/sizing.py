"""How much memory a model takes: from its header and the settings of its worker to one figure a resource.

Never exact, never less than what was measured: docs/admission.md holds the table of estimates against peaks.
"""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import Final

from rbee.core import engine_args, llama_cpp, repacking
from rbee.core.claims import Need, Parts, Peak, Placement, Source
from rbee.core.engine_args import Value
from rbee.core.model_header import ModelFacts, ModelHeader
from rbee.core.worker import WorkerSpec

MIB: Final = 2**20

_CACHE_BLOCKS: Final[Mapping[str, tuple[int, int]]] = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "iq4_nl": (32, 18),
    "q5_0": (32, 22),
    "q5_1": (32, 24),
}
"""Elements and bytes of one block of a cache type (the block structs in ggml-common.h)."""

_PAD: Final = 256
"""llama.cpp rounds the cells of a sequence, and those of its window, up to a multiple of this."""

_CELL_BYTES: Final = 64
"""What llama.cpp notes of a cell beside its keys and values (37 measured)."""

_FLOAT: Final = 4

_PROCESSES_BYTES: Final = 80 * MIB
"""Keeper (16 MiB resident), the engine's Python and libraries (30), its threads and graphs (8); measured. The rest is
for requests: 40 clients at once, with tools and a schema, took 9. What it takes to refuse a prompt of megabytes is not
in it: 45 bytes for each byte, and not for long."""

_TOKEN_BYTES: Final = 300
"""One token of the vocabulary in llama.cpp's tables: 160 measured between one of 49 and one of 262 thousand tokens;
byte pairs have their merges too."""

_DEVICE_BYTES: Final = 512 * MIB
"""A margin, not measured here: a CUDA context takes 300 to 500 MiB of video memory, the workspace of cuBLAS 8 to 32."""

_DRIVER_BYTES: Final = 256 * MIB
"""A margin, not measured here: what a process that uses an accelerator maps of its driver's libraries."""

_PIPELINE_COPIES: Final = 4
"""With several devices ggml's scheduler keeps this many copies of a graph's inputs (GGML_SCHED_MAX_COPIES)."""

_SYNTHETIC_BYTES: Final = 48 * MIB
"""Keeper and synthetic engine: 30 MiB measured with 64 clients."""


@dataclass(frozen=True, slots=True)
class Sizing:
    """The settings of a worker that decide how much it takes.

    ``ctx_size``: tokens of one request. ``batch``: tokens computed at once; ``all_outputs``: each of them has an
    output (embeddings), not only the last. ``gpu_layers``: how many layers leave host memory, the output counting as
    one, None for all where there is a device. ``is_mapped``: weights are pages of the file, not copies. ``processor``:
    as ``uname -m`` names it.
    """

    ctx_size: int
    slots: int
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    flash_attention: bool = True
    batch: int = llama_cpp.BATCH
    prompt_cache_bytes: int = 0
    gpu_layers: int | None = None
    all_outputs: bool = False
    is_mapped: bool = True
    processor: str = repacking.X86_64


def sizing_of(
    spec: WorkerSpec, header: ModelHeader, prompt_cache_bytes: int, placement: Placement, processor: str
) -> Sizing:
    """What the engine of *spec* will be started with."""
    added = repacking.added_args(header, spec.engine_args, placement, processor)
    args = engine_args.parse(spec.engine, (*spec.engine_args, *added))
    layers = args.get("--n-gpu-layers")
    return Sizing(
        ctx_size=spec.ctx_size,
        slots=spec.slots,
        cache_type_k=str(args.get("--cache-type-k", "f16")),
        cache_type_v=str(args.get("--cache-type-v", "f16")),
        flash_attention=args.get("--flash-attn") != "off",
        batch=llama_cpp.batch_of(spec.ctx_size, args),
        prompt_cache_bytes=llama_cpp.prompt_cache_mib(prompt_cache_bytes) * MIB,
        gpu_layers=None if layers is None else int(layers),
        all_outputs=llama_cpp.embeds(args),
        is_mapped=repacking.NO_MAP not in args,
        processor=processor,
    )


def estimate(header: ModelHeader, sizing: Sizing, placement: Placement) -> Need:
    """What llama.cpp takes for a model with these settings, placed so."""
    places = _places(header.layers, sizing, placement)
    caches = _caches(header, sizing)
    layers: dict[int | None, list[int]] = {}
    for il in range(header.layers):
        layers.setdefault(places[il], []).append(il)
    own = layers.get(None, [])
    is_output_here = places[-1] is None
    host = Parts(
        weights_bytes=_host_weights(header, own, is_output_here) + _repacked(header, sizing, placement),
        kv_cache_bytes=sum(caches[il] for il in own),
        compute_bytes=_host_compute(header, sizing, placement, bool(own), is_output_here),
        prompt_cache_bytes=sizing.prompt_cache_bytes,
        overhead_bytes=_host_overhead(header, sizing, placement),
    )
    vram = []
    # All devices but the one with the output compute alike.
    compute = {has_output: _compute(header, sizing, placement, has_output) for has_output in (False, True)}
    for device in range(len(placement.devices)):
        own = layers.get(device, [])
        has_output = places[-1] == device
        parts = Parts(
            weights_bytes=sum(header.layer_bytes[il] for il in own) + (_copied_output(header) if has_output else 0),
            kv_cache_bytes=sum(caches[il] for il in own),
            compute_bytes=compute[has_output],
            overhead_bytes=_DEVICE_BYTES,
        )
        vram.append(parts)
    return Need(host, tuple(vram))


def need_of(
    spec: WorkerSpec,
    facts: ModelFacts,
    prompt_cache_bytes: int,
    placement: Placement,
    peak: Peak | None,
    processor: str = repacking.X86_64,
) -> Need:
    """What a worker for *spec* takes, whatever its engine; a *peak* of the same settings replaces a lower figure.

    A command's memory on its devices is not told by a stated ``max_memory_bytes``, which is of host memory.
    """
    if spec.engine == "llama-cpp" and facts.header is not None:
        sizing = sizing_of(spec, facts.header, prompt_cache_bytes, placement, processor)
        return _raised(estimate(facts.header, sizing, placement), peak)
    if spec.engine == "synthetic":
        return _raised(_synthetic(engine_args.parse(spec.engine, spec.engine_args), placement), peak)
    if spec.engine == "llama-cpp":
        return _raised(_without_header(facts.file_bytes, prompt_cache_bytes, placement), peak)
    return _of_command(spec, facts, placement, peak)


def peak_key(spec: WorkerSpec, file_bytes: int, placement: Placement, prompt_cache_bytes: int) -> str:
    """Names what a peak was measured of: 12 hexadecimal digits, the same for what has the same need.

    Devices count by how many they are, not by which; a file of another size is another model, whatever its name.
    """
    settings = sorted(engine_args.parse(spec.engine, spec.engine_args).items())
    cache = llama_cpp.prompt_cache_mib(prompt_cache_bytes) if spec.engine == "llama-cpp" else 0
    where = [placement.backend, len(placement.devices)]
    kind = [spec.model_ref, file_bytes, spec.engine, settings, spec.ctx_size, spec.slots, *where, cache]
    return hashlib.sha256(json.dumps(kind).encode()).hexdigest()[:12]


def _places(layers: int, sizing: Sizing, placement: Placement) -> list[int | None]:
    """The place in the placement of each layer and, last, of the output; None is the host.

    llama.cpp's rule (load_tensors in llama-model.cpp): the last ``gpu_layers`` of layers + 1 leave the host, each to
    the first device whose share, added to those before it, exceeds the part of them that lies before the layer.
    """
    count = layers + 1
    away = min(count, count if sizing.gpu_layers is None else sizing.gpu_layers) if placement.devices else 0
    shares = placement.split or (1.0,) * len(placement.devices)
    ends = list(accumulate(shares))
    placed: list[int | None] = [None] * (count - away)
    parts = [i / away for i in range(away)]
    first = 0
    for device, end in enumerate(ends[:-1]):
        begin = first
        first = bisect_left(parts, end / ends[-1], begin)
        placed += [device] * (first - begin)
    return placed + [len(ends) - 1] * (away - first)


def _host_weights(header: ModelHeader, own: Sequence[int], is_output_here: bool) -> int:
    """The token embeddings always stay; a tied output is the embeddings again."""
    output = header.output_bytes if is_output_here else 0
    return header.input_bytes + sum(header.layer_bytes[il] for il in own) + output


def _repacked(header: ModelHeader, sizing: Sizing, placement: Placement) -> int:
    """Weights that are in host memory a second time."""
    if placement.devices:
        return 0
    mapped = repacking.repacked_bytes(header, sizing.processor) if sizing.is_mapped else 0
    return mapped + repacking.tied_copy_bytes(header, sizing.processor)


def _copied_output(header: ModelHeader) -> int:
    """On a device a tied output has to be a copy, since the embeddings stay in host memory."""
    return header.output_bytes + header.tied_bytes


def _host_compute(header: ModelHeader, sizing: Sizing, placement: Placement, has_layers: bool, has_output: bool) -> int:
    """Scratch of the layers here (of the inputs alone where none is) and the outputs, which are always read here."""
    scratch = _inputs(header, sizing, placement)
    if has_layers or has_output:
        scratch = _compute(header, sizing, placement, has_output)
    wide = header.vocabulary + (header.embedding_length if sizing.all_outputs else 0)
    return scratch + _outputs(sizing) * wide * _FLOAT


def _outputs(sizing: Sizing) -> int:
    """Tokens of a batch whose logits are computed: those of an answer only, one a slot."""
    return sizing.batch if sizing.all_outputs else sizing.slots


def _host_overhead(header: ModelHeader, sizing: Sizing, placement: Placement) -> int:
    cells = sizing.slots * (_cells(sizing) + (_window(header, sizing) if any(header.windowed) else 0))
    noted = cells * _CELL_BYTES + header.vocabulary * _TOKEN_BYTES + _checkpoints(header, sizing)
    return _process_bytes(placement) + noted


def _process_bytes(placement: Placement) -> int:
    return _PROCESSES_BYTES + (_DRIVER_BYTES if placement.devices else 0)


def _cells(sizing: Sizing) -> int:
    """Tokens for which a slot has room."""
    return _padded(sizing.ctx_size)


def _window(header: ModelHeader, sizing: Sizing) -> int:
    """Tokens that a layer with a sliding window keeps of a slot (llama-kv-cache-iswa.cpp)."""
    return _padded(min(_cells(sizing), header.sliding_window + sizing.batch))


def _padded(cells: int) -> int:
    return -(-cells // _PAD) * _PAD


@lru_cache(maxsize=4)
def _caches(header: ModelHeader, sizing: Sizing) -> list[int]:
    """Keys and values of all slots by layer, or states in recurrent ones: allocated, and written, at the start."""
    full, window = _cells(sizing), _window(header, sizing)
    caches = []
    for il in range(header.layers):
        cells = window if _is_windowed(header, il) else full
        caches.append(sizing.slots * (cells * _token_bytes(header, sizing, il) + _state_bytes(header, il)))
    return caches


def _token_bytes(header: ModelHeader, sizing: Sizing, il: int) -> int:
    """Key and value of one token in one layer."""
    heads, key, value = header.kv_heads[il], header.key_length, header.value_length
    if _is_windowed(header, il):
        key, value = header.window_key_length or key, header.window_value_length or value
    return _row(heads * key, sizing.cache_type_k) + _row(heads * value, sizing.cache_type_v)


def _row(elements: int, cache_type: str) -> int:
    block, size = _CACHE_BLOCKS[cache_type]
    return -(-elements // block) * size


def _is_windowed(header: ModelHeader, il: int) -> bool:
    return bool(header.sliding_window) and il < len(header.windowed) and header.windowed[il]


def _state_bytes(header: ModelHeader, il: int) -> int:
    return header.state_bytes[il] if il < len(header.state_bytes) else 0


@lru_cache(maxsize=4)
def _checkpoints(header: ModelHeader, sizing: Sizing) -> int:
    """Copies, in host memory, of what a slot cannot go back in: its windows and its recurrent states."""
    tokens = min(header.sliding_window, _cells(sizing))
    one = sum(
        _state_bytes(header, il) + (tokens * _token_bytes(header, sizing, il) if _is_windowed(header, il) else 0)
        for il in range(header.layers)
    )
    return one * llama_cpp.CHECKPOINTS * sizing.slots


def _inputs(header: ModelHeader, sizing: Sizing, placement: Placement) -> int:
    """The batch's embeddings and the masks (half floats with flash attention), one for each kind of layer."""
    seen = _cells(sizing) + (_window(header, sizing) if any(header.windowed) else 0)
    masks = sizing.batch * seen * (2 if sizing.flash_attention else _FLOAT)
    copies = _PIPELINE_COPIES if len(placement.devices) > 1 else 1
    return copies * (masks + sizing.batch * header.embedding_length * _FLOAT)


def _compute(header: ModelHeader, sizing: Sizing, placement: Placement, has_output: bool) -> int:
    """ggml's compute buffer: the inputs, the residual stream, and the widest step of a layer, for a whole batch.

    Five vectors of the embedding's length and, at the widest, three of the feed-forward's, or the vocabulary of those
    tokens that have an output, or queries, keys and values (twice) with, without flash attention, a score for each
    token and head. Against what llama.cpp reports for two models at 36 settings: 1 MiB under to 10 MiB over.
    """
    heads, kv_heads = max(header.heads, default=0), max(header.kv_heads, default=0)
    scores = 0 if sizing.flash_attention else heads * _cells(sizing)
    attention = 2 * (heads * header.key_length + kv_heads * (header.key_length + header.value_length)) + scores
    feed_forward = 3 * header.feed_forward_length
    # A model without any cache (an encoder) ends in embeddings: it computes no vocabulary.
    outputs = header.vocabulary * _outputs(sizing) if has_output and any((*header.kv_heads, *header.state_bytes)) else 0
    steady = sizing.batch * 5 * header.embedding_length
    widest = max(sizing.batch * attention, sizing.batch * feed_forward, outputs)
    return _inputs(header, sizing, placement) + (steady + widest) * _FLOAT


def _synthetic(args: Mapping[str, Value], placement: Placement) -> Need:
    """What it was told to hold, in host memory (its own and mapped from a file) and on its devices, split evenly."""
    held = int(args.get("--hold-bytes", 0)) + int(args.get("--map-bytes", 0))
    video = int(args.get("--vram-bytes", 0))
    vram = tuple(Parts(weights_bytes=part) for part in _divided(video, placement))
    return Need(Parts(weights_bytes=held, overhead_bytes=_SYNTHETIC_BYTES), vram, Source.STATED)


def _without_header(file_bytes: int, prompt_cache_bytes: int, placement: Placement) -> Need:
    """llama.cpp with a model of which only the size is known: that, and what its processes take with any model."""
    need = _by_file_size(file_bytes, placement)
    ram = replace(
        need.ram,
        prompt_cache_bytes=llama_cpp.prompt_cache_mib(prompt_cache_bytes) * MIB,
        overhead_bytes=_process_bytes(placement),
    )
    return replace(need, ram=ram, vram=tuple(replace(parts, overhead_bytes=_DEVICE_BYTES) for parts in need.vram))


def _by_file_size(file_bytes: int, placement: Placement) -> Need:
    """A fifth more than the file, in host memory and, by the split, on devices: nobody knows what goes where."""
    size = -(-file_bytes * 6 // 5)
    vram = tuple(Parts(weights_bytes=part) for part in _divided(size, placement))
    return Need(Parts(weights_bytes=size), vram, Source.FILE_SIZE)


def _of_command(spec: WorkerSpec, facts: ModelFacts, placement: Placement, peak: Peak | None) -> Need:
    """Stated, else measured, else by the file's size: nothing else is known of a foreign engine."""
    by_file = _by_file_size(facts.file_bytes, placement)
    vram = by_file.vram
    if peak is not None and len(peak.vram_bytes) == len(vram):
        vram = tuple(
            Parts(unexplained_bytes=seen) if seen else part for seen, part in zip(peak.vram_bytes, vram, strict=True)
        )
    if spec.max_memory_bytes is not None:
        return Need(Parts(weights_bytes=spec.max_memory_bytes), vram, Source.STATED)
    if peak is not None:
        return Need(Parts(unexplained_bytes=peak.ram_bytes), vram, Source.MEASURED)
    return replace(by_file, vram=vram)


def _divided(total: int, placement: Placement) -> list[int]:
    """*total* by the split, rounded up."""
    shares = placement.split or (1.0,) * len(placement.devices)
    whole = sum(shares)
    return [-int(-total * share / whole // 1) for share in shares]


def _raised(need: Need, peak: Peak | None) -> Need:
    """*need*, each figure of it at least what was measured."""
    if peak is None:
        return need
    seen = peak.vram_bytes if len(peak.vram_bytes) == len(need.vram) else (0,) * len(need.vram)
    ram = _at_least(need.ram, peak.ram_bytes)
    vram = tuple(_at_least(parts, most) for parts, most in zip(need.vram, seen, strict=True))
    raised = Need(ram, vram, need.source)
    return raised if raised == need else replace(raised, source=Source.MEASURED)


def _at_least(parts: Parts, seen: int) -> Parts:
    return replace(parts, unexplained_bytes=parts.unexplained_bytes + max(0, seen - parts.total_bytes))
