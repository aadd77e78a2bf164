"""How much a model takes, against figures worked out by hand."""

from dataclasses import replace

import pytest

from rbee.core import llama_cpp
from rbee.core.claims import Peak, Placement, Source
from rbee.core.model_header import ModelFacts, ModelHeader
from rbee.core.sizing import Sizing, estimate, need_of, peak_key, sizing_of
from rbee.core.worker import WorkerSpec

MIB = 2**20
CPU = Placement()
ONE = Placement("cuda", (0,), (1.0,))
TWO = Placement("cuda", (0, 1), (0.5, 0.5))
HEADER = ModelHeader(
    architecture="llama",
    embedding_length=1024,
    feed_forward_length=4096,
    vocabulary=32_000,
    context_length=8192,
    heads=(16,) * 7,
    kv_heads=(4,) * 7,
    key_length=64,
    value_length=64,
    input_bytes=100 * MIB,
    layer_bytes=(10 * MIB,) * 7,
    output_bytes=80 * MIB,
    is_tied=False,
    quantization="Q4_1",
)
WINDOWED = replace(HEADER, sliding_window=500, windowed=(True, True, True, False, True, True, True))
SPEC = WorkerSpec("w-1", "hf:a/b", ctx_size=1024, slots=2)


def cache(header=HEADER, **settings):
    return estimate(header, Sizing(**{"ctx_size": 1024, "slots": 2, **settings}), CPU).ram.kv_cache_bytes


def need(*args, header=HEADER, placement=CPU, peak=None, prompt_cache=0, **fields):
    spec = replace(SPEC, engine_args=args, **fields)
    return need_of(spec, ModelFacts(400 * MIB, header), prompt_cache, placement, peak)


def test_the_cache_counts_the_heads_of_keys_and_values_not_those_of_queries():
    assert cache() == 7 * 2 * 1024 * (4 * 64 + 4 * 64) * 2


def test_keys_and_values_may_differ_in_length_and_type():
    header = replace(HEADER, key_length=192, value_length=128)
    assert cache(header, cache_type_v="f32") == 7 * 2 * 1024 * (4 * 192 * 2 + 4 * 128 * 4)


@pytest.mark.parametrize(
    ("cache_type", "bytes_of_32"),
    [
        *(("f32", 128), ("f16", 64), ("bf16", 64), ("q8_0", 34), ("q5_1", 24)),
        *(("q5_0", 22), ("q4_1", 20), ("q4_0", 18), ("iq4_nl", 18)),
    ],
)
def test_a_cache_type_takes_what_its_blocks_take(cache_type, bytes_of_32):
    found = cache(cache_type_k=cache_type, cache_type_v=cache_type)
    assert found == 7 * 2 * 1024 * 2 * (4 * 64 // 32) * bytes_of_32


def test_a_context_is_rounded_up_as_the_engine_does():
    assert cache(ctx_size=1) == cache(ctx_size=256)
    assert cache(ctx_size=257) == cache(ctx_size=512)


def test_a_layer_with_a_window_keeps_the_window_and_a_batch():
    token = 2 * (4 * 64) * 2
    assert cache(WINDOWED, ctx_size=8192) == 2 * token * (8192 + 6 * 1024)


def test_a_window_may_have_heads_of_its_own_size():
    header = replace(WINDOWED, window_key_length=128, window_value_length=32)
    assert cache(header, ctx_size=8192) == 2 * 4 * 2 * (8192 * 128 + 6 * 1024 * 160)


def test_no_values_are_cached_where_they_have_no_length():
    assert cache(replace(HEADER, value_length=0)) == 7 * 2 * 1024 * (4 * 64) * 2


def test_a_window_never_keeps_more_than_the_context():
    assert cache(WINDOWED, ctx_size=512) == cache(ctx_size=512)


def test_the_windows_that_are_saved_for_going_back_are_counted():
    plain, windowed = (estimate(header, Sizing(8192, 2), CPU).ram.overhead_bytes for header in (HEADER, WINDOWED))
    saved = 6 * 500 * 2 * (4 * 64) * 2
    assert windowed - plain == 2 * llama_cpp.CHECKPOINTS * saved + 2 * 1024 * 64


def test_a_recurrent_layer_has_one_state_a_slot_whatever_the_context():
    header = replace(HEADER, state_bytes=(3 * MIB,) * 6 + (0,), kv_heads=(0,) * 6 + (4,))
    assert cache(header) == 2 * (6 * 3 * MIB + 1024 * 2 * (4 * 64) * 2)


def test_on_the_processor_all_weights_are_in_host_memory_once():
    assert need().ram.weights_bytes == 250 * MIB
    assert need().vram == ()


def test_a_tied_output_takes_nothing_more_in_host_memory():
    tied = replace(HEADER, output_bytes=0, is_tied=True, tied_bytes=90 * MIB)
    assert need(header=tied).ram.weights_bytes == 170 * MIB


@pytest.mark.parametrize(
    ("changes", "weights"),
    [
        ({"type_bytes": (("Q4_K", 24 * MIB), ("Q6_K", 126 * MIB))}, 274),
        ({"type_bytes": (("Q4_K", 25 * MIB), ("Q6_K", 125 * MIB))}, 250),
        ({"type_bytes": (("Q4_0", 150 * MIB),)}, 250),
        ({"type_bytes": (("Q8_0", 150 * MIB),)}, 250),
    ],
)
def test_what_the_processor_copies_counts_twice_where_it_is_too_little_to_read_the_model_for(changes, weights):
    assert need(header=replace(HEADER, **changes)).ram.weights_bytes == weights * MIB


def test_a_model_that_shall_be_mapped_is_in_memory_twice_where_it_is_repacked():
    header = replace(HEADER, type_bytes=(("Q4_0", 140 * MIB), ("F32", 10 * MIB)))
    assert need("--mmap", header=header).ram.weights_bytes == 390 * MIB


def test_nothing_is_repacked_beside_a_device():
    header = replace(HEADER, type_bytes=(("Q4_0", 150 * MIB),))
    found = need("--n-gpu-layers", "3", header=header, placement=ONE)
    assert found.ram.weights_bytes == (100 + 5 * 10) * MIB


@pytest.mark.parametrize("args", [(), ("--no-mmap",), ("--mmap",)])
def test_a_tied_output_that_is_repacked_is_a_copy_however_the_model_is_loaded(args):
    tied = replace(HEADER, output_bytes=0, is_tied=True, tied_bytes=90 * MIB, tied_type="Q4_0")
    assert need(*args, header=tied).ram.weights_bytes == (170 + 90) * MIB


def test_another_processor_repacks_more():
    header = replace(HEADER, type_bytes=(("Q6_K", 20 * MIB), ("F16", 130 * MIB)))
    found = need_of(SPEC, ModelFacts(1, header), 0, CPU, None, "aarch64")
    assert found.ram.weights_bytes == 270 * MIB


def test_on_one_device_all_but_the_embeddings_leaves_host_memory():
    found = need(placement=ONE)
    assert found.ram.weights_bytes == 100 * MIB
    assert found.ram.kv_cache_bytes == 0
    assert found.vram[0].weights_bytes == 150 * MIB
    assert found.vram[0].kv_cache_bytes == need().ram.kv_cache_bytes


def test_a_tied_output_is_copied_to_the_device():
    tied = replace(HEADER, output_bytes=0, is_tied=True, tied_bytes=90 * MIB)
    assert need(header=tied, placement=ONE).vram[0].weights_bytes == (70 + 90) * MIB


def test_two_devices_share_the_layers_and_the_last_has_the_output():
    found = need(placement=TWO)
    assert [part.weights_bytes // MIB for part in found.vram] == [40, 30 + 80]
    assert sum(part.kv_cache_bytes for part in found.vram) == need().ram.kv_cache_bytes


def test_an_uneven_split_is_followed():
    found = need(placement=Placement("cuda", (0, 1), (0.25, 0.75)))
    assert [part.weights_bytes // MIB for part in found.vram] == [20, 50 + 80]


def test_a_device_without_a_layer_still_pays_for_its_context():
    found = need(placement=Placement("cuda", (0, 1), (0.0, 1.0)))
    assert found.vram[0].weights_bytes == 0
    assert found.vram[0].overhead_bytes == found.vram[1].overhead_bytes > 0


@pytest.mark.parametrize(
    ("layers", "host", "device"), [(0, 250, 0), (1, 170, 80), (3, 150, 100), (8, 100, 150), (9999, 100, 150)]
)
def test_the_layers_that_stay_are_the_first_and_the_output_leaves_before_them(layers, host, device):
    found = need("--n-gpu-layers", str(layers), placement=ONE)
    assert (found.ram.weights_bytes // MIB, found.vram[0].weights_bytes // MIB) == (host, device)
    assert found.ram.kv_cache_bytes + found.vram[0].kv_cache_bytes == need().ram.kv_cache_bytes


def test_the_scratch_is_what_the_engine_reports_for_a_known_model():
    """SmolLM2-135M at 4096 tokens and 4 slots: 18.64 MiB; 87.51 MiB without flash attention; outputs 0.75 MiB."""
    smol = replace(
        *(HEADER,),
        **{"embedding_length": 576, "feed_forward_length": 1536, "vocabulary": 49_152},
        **{"heads": (9,), "kv_heads": (3,), "layer_bytes": (1,)},
    )
    flash, plain = (
        estimate(smol, Sizing(4096, 4, flash_attention=on), CPU).ram.compute_bytes / MIB - 0.75 for on in (True, False)
    )
    assert 18.64 <= flash <= 1.1 * 18.64
    assert 87.51 <= plain <= 1.1 * 87.51


def test_an_embedding_model_has_the_whole_vocabulary_for_each_token_twice():
    """Once where it is computed, once where it is read."""
    assert need("--embedding").ram.compute_bytes > 2 * 1024 * 32_000 * 4
    assert need().ram.compute_bytes < 1024 * 32_000 * 4


def test_a_model_without_a_cache_computes_no_vocabulary():
    encoder = replace(HEADER, kv_heads=(0,) * 7)
    both, read = (need("--embedding", header=header).ram.compute_bytes for header in (HEADER, encoder))
    assert both - read > 0.6 * 1024 * 32_000 * 4


def test_the_prompt_cache_is_counted_as_it_is_granted():
    assert need(prompt_cache=5 * MIB + 1).ram.prompt_cache_bytes == 5 * MIB


def test_settings_are_read_from_the_engines_arguments():
    args = ("--cache-type-k=q8_0", "--flash-attn", "off", "--n-gpu-layers", "3", "--no-mmap", "--reranking")
    found = sizing_of(replace(SPEC, engine_args=args), HEADER, 0, CPU, "x86_64")
    assert found == Sizing(1024, 2, "q8_0", "f16", False, 1024, 0, 3, all_outputs=True, is_mapped=False)


def test_a_model_without_a_usable_header_takes_a_fifth_more_than_its_file():
    found = need(header=None, prompt_cache=5 * MIB)
    assert (found.ram.weights_bytes, found.ram.prompt_cache_bytes) == (480 * MIB, 5 * MIB)
    assert found.source is Source.FILE_SIZE


def test_processes_take_the_same_of_a_model_without_a_usable_header():
    header = replace(HEADER, vocabulary=0, sliding_window=0)
    known, unknown = (need(header=found, placement=ONE) for found in (header, None))
    assert 0 <= known.ram.overhead_bytes - unknown.ram.overhead_bytes < MIB
    assert known.vram[0].overhead_bytes == unknown.vram[0].overhead_bytes


def test_a_command_takes_what_was_stated():
    found = need(engine="command", max_memory_bytes=3 * MIB, peak=Peak(900 * MIB))
    assert (found.ram.total_bytes, found.source) == (3 * MIB, Source.STATED)


def test_a_command_takes_what_was_measured_where_nothing_was_stated():
    found = need(engine="command", peak=Peak(3 * MIB))
    assert (found.ram.total_bytes, found.source) == (3 * MIB, Source.MEASURED)


def test_a_command_takes_a_fifth_more_than_its_file_where_nothing_is_known():
    found = need(engine="command", placement=TWO, prompt_cache=5 * MIB)
    assert (found.ram.total_bytes, found.source) == (480 * MIB, Source.FILE_SIZE)
    assert [part.total_bytes for part in found.vram] == [240 * MIB, 240 * MIB]


def test_a_command_takes_of_each_device_what_was_measured_there():
    found = need(engine="command", placement=TWO, peak=Peak(3 * MIB, (700 * MIB, 0)))
    assert [part.total_bytes for part in found.vram] == [700 * MIB, 240 * MIB]


def test_a_synthetic_worker_takes_what_it_holds():
    idle, full = (need("--hold-bytes", str(held), engine="synthetic", header=None) for held in (0, 7 * MIB))
    assert full.ram.total_bytes - idle.ram.total_bytes == 7 * MIB
    assert full.source is Source.STATED


def test_a_higher_peak_replaces_an_estimate_and_says_by_how_much():
    plain = need(placement=TWO)
    most = plain.vram[1].total_bytes + 5
    found = need(placement=TWO, peak=Peak(1, (1, most)))
    assert (found.ram, found.vram[0]) == (plain.ram, plain.vram[0])
    assert (found.vram[1].total_bytes, found.vram[1].unexplained_bytes) == (most, 5)
    assert found.source is Source.MEASURED


def test_a_lower_peak_changes_nothing():
    assert need(peak=Peak(1)) == need()


def test_a_peak_of_another_number_of_devices_says_nothing_of_these():
    assert need(placement=TWO, peak=Peak(1, (2**50,))) == need(placement=TWO)


def test_a_peak_is_of_a_model_and_the_settings_that_decide_its_need():
    key = peak_key(SPEC, 9, CPU, 0)
    for changes in ({"ctx_size": 2048}, {"slots": 3}, {"engine_args": ("--no-mmap",)}, {"model_ref": "hf:a/c"}):
        assert peak_key(replace(SPEC, **changes), 9, CPU, 0) != key
    assert peak_key(SPEC, 8, CPU, 0) != key
    assert len({key, peak_key(SPEC, 9, ONE, 0), peak_key(SPEC, 9, TWO, 0), peak_key(SPEC, 9, CPU, MIB)}) == 4


def test_a_peak_is_the_same_for_whoever_runs_it_and_wherever():
    other = replace(SPEC, worker_id="w-2", alias="x", max_memory_bytes=1, device=1)
    assert peak_key(other, 9, Placement("cuda", (3,), (1.0,)), 0) == peak_key(SPEC, 9, ONE, 0)


def test_the_order_of_arguments_does_not_matter_to_a_peak():
    there, back = (replace(SPEC, engine_args=args) for args in (("--mlock", "--no-mmap"), ("--no-mmap", "--mlock")))
    assert peak_key(there, 9, CPU, 0) == peak_key(back, 9, CPU, 0)


def test_a_large_model_of_the_field_gets_no_absurd_figure():
    """Llama 3 70B in Q4_K_M, 42 GB, over two devices of 80 GB, at 4 times 8192 tokens: 10 GiB of cache."""
    llama = replace(
        *(HEADER,),
        **{"embedding_length": 8192, "feed_forward_length": 28_672, "vocabulary": 128_256, "key_length": 128},
        **{"value_length": 128, "heads": (64,) * 80, "kv_heads": (8,) * 80, "layer_bytes": (500 * MIB,) * 80},
    )
    found = estimate(llama, Sizing(8192, 4), TWO)
    assert sum(part.kv_cache_bytes for part in found.vram) == 10 * 2**30
    assert all(24 * 2**30 < part.total_bytes < 28 * 2**30 for part in found.vram)
    assert found.ram.total_bytes < 2**30
