"""What each kind of model caches, by its keys, its tensors, and what llama.cpp does with them."""

import pytest

from rbee.models.facts import read_facts
from tests.gguf_files import Model


def header_of(tmp_path, *args, **kwargs):
    found = read_facts(str(Model(*args, **kwargs).write(tmp_path / "model.gguf"))).header
    assert found is not None
    return found


def windowed(header):
    return "".join("w" if one else "." for one in header.windowed)


def test_heads_may_differ_by_layer(tmp_path):
    extra = {"attention.head_count": [4, 8, 4], "attention.head_count_kv": [2, 4, 0], "feed_forward_length": [1, 9, 5]}
    found = header_of(tmp_path, "deci", 3, extra)
    assert (found.heads, found.kv_heads, found.feed_forward_length) == ((4, 8, 4), (2, 4, 0), 9)
    assert found.key_length == 8


@pytest.mark.parametrize("count", [[2], [2, 2, 2], [2, -1], [0.5, 0.5], "2"])
def test_heads_that_do_not_match_the_layers_leave_the_size_of_the_file(tmp_path, count):
    path = Model(extra={"attention.head_count_kv": count}).write(tmp_path / "model.gguf")
    assert read_facts(str(path)).header is None


def test_numbers_that_no_model_has_leave_the_size_of_the_file(tmp_path):
    huge = {"ssm.conv_kernel": 4, "ssm.inner_size": 2**25, "ssm.state_size": 2**25}
    for extra in (huge, {"embedding_length": 2**40}, {"attention.head_count_kv": [2**31 - 1, 2]}):
        assert read_facts(str(Model(extra=extra).write(tmp_path / "model.gguf"))).header is None


def test_a_model_that_says_nothing_of_cached_heads_caches_all(tmp_path):
    assert header_of(tmp_path, extra={"attention.head_count_kv": None}).kv_heads == (4, 4)


def test_lengths_of_heads_come_from_the_header_where_it_has_them(tmp_path):
    said = {"attention.key_length": 256, "attention.value_length": 128}
    assert (header_of(tmp_path).key_length, header_of(tmp_path).value_length) == (16, 16)
    found = header_of(tmp_path, extra=said)
    assert (found.key_length, found.value_length) == (256, 128)


@pytest.mark.parametrize(
    ("architecture", "pattern"),
    [
        ("gemma2", "w.w.w.w.w.w."),
        ("gemma3", "wwwww.wwwww."),
        ("gemma3n", "wwww.wwww.ww"),
        ("gpt-oss", "w.w.w.w.w.w."),
        ("cohere2", "www.www.www."),
        ("llama4", "www.www.www."),
        ("olmo2", "www.www.www."),
        ("cohere2moe", ".www.www.www"),
        ("phi3", "............"),
        ("llama", "............"),
    ],
)
def test_which_layers_keep_only_a_window_is_known_of_each_architecture(tmp_path, architecture, pattern):
    found = header_of(tmp_path, architecture, 12, {"attention.sliding_window": 512})
    assert windowed(found) == pattern
    assert found.sliding_window == (0 if "w" not in pattern else 8192 if architecture == "llama4" else 512)


@pytest.mark.parametrize(
    ("said", "pattern"), [(3, "ww.w"), (0, "wwww"), (1, "...."), ([True, True, False, True], "ww.w"), ([True], "....")]
)
def test_a_pattern_in_the_header_comes_first(tmp_path, said, pattern):
    extra = {"attention.sliding_window": 512, "attention.sliding_window_pattern": said}
    assert windowed(header_of(tmp_path, "gemma3", 4, extra)) == pattern


def test_a_pattern_without_a_window_means_nothing(tmp_path):
    found = header_of(tmp_path, "gemma3", 4, {"attention.sliding_window_pattern": 2})
    assert (found.sliding_window, windowed(found)) == (0, "....")


def test_llama4_may_switch_its_window_off(tmp_path):
    assert windowed(header_of(tmp_path, "llama4", 4, {"attention.sliding_window": 0})) == "...."


def test_windowed_layers_may_have_heads_of_another_length(tmp_path):
    extra = {"attention.key_length": 512, "attention.key_length_swa": 256, "attention.value_length_swa": 128}
    found = header_of(tmp_path, "gemma4", extra=extra)
    assert (found.key_length, found.window_key_length, found.window_value_length) == (512, 256, 128)


def test_layers_that_share_the_cache_of_another_have_none(tmp_path):
    assert header_of(tmp_path, "gemma4", 5, {"attention.shared_kv_layers": 2}).kv_heads == (2, 2, 2, 0, 0)
    assert header_of(tmp_path, "gemma3n", 22).kv_heads == (2,) * 20 + (0, 0)


def test_latent_attention_caches_keys_and_no_values(tmp_path):
    extra = {
        "attention.head_count_kv": 1,
        "attention.key_length": 576,
        "attention.value_length": 512,
        "attention.kv_lora_rank": 512,
        "attention.key_length_mla": 192,
        "attention.value_length_mla": 128,
    }
    found = header_of(tmp_path, "deepseek2", extra=extra)
    assert (found.kv_heads, found.key_length, found.value_length) == ((1, 1), 576, 0)


def test_the_keys_of_an_indexer_are_cached_too(tmp_path):
    extra = {"attention.key_length": 576, "attention.indexer.key_length": 128}
    assert header_of(tmp_path, "deepseek32", extra=extra).key_length == 704


def test_a_model_of_recurrent_layers_alone_keeps_states(tmp_path):
    extra = {
        "attention.head_count": None,
        "attention.head_count_kv": None,
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 128,
        "ssm.state_size": 16,
    }
    tensors = {layer: ["ssm_in.weight", "ssm_conv1d.weight"] for layer in range(2)}
    found = header_of(tmp_path, "mamba", 2, extra, layer_tensors=tensors)
    assert found.kv_heads == (0, 0)
    assert found.state_bytes == (4 * (3 * 128 + 16 * 128),) * 2


def test_a_hybrid_keeps_states_in_some_layers_and_a_cache_in_the_others(tmp_path):
    """qwen3next: its recurrent layers have a fused attn_qkv, which is none of attention."""
    extra = {"ssm.conv_kernel": 4, "ssm.inner_size": 128, "ssm.state_size": 16, "ssm.group_count": 2}
    tensors = {0: ["attn_qkv.weight", "ssm_out.weight"], 1: ["attn_q.weight", "attn_k.weight", "attn_v.weight"]}
    found = header_of(tmp_path, "qwen3next", 2, extra, layer_tensors=tensors)
    assert found.kv_heads == (0, 2)
    assert found.state_bytes == (4 * (3 * (128 + 2 * 2 * 16) + 16 * 128), 0)


def test_a_layer_may_keep_both(tmp_path):
    extra = {"ssm.conv_kernel": 4, "ssm.inner_size": 128, "ssm.state_size": 16}
    tensors = {0: ["attn_k.weight", "ssm_out.weight"]}
    found = header_of(tmp_path, "falcon-h1", 1, extra, layer_tensors=tensors)
    assert found.kv_heads == (2,)
    assert found.state_bytes[0] > 0


def test_short_convolutions_keep_their_last_tokens(tmp_path):
    tensors = {0: ["shortconv.conv.weight"], 1: ["attn_k.weight"]}
    extra = {"shortconv.l_cache": 3, "attention.head_count_kv": [0, 2]}
    found = header_of(tmp_path, "lfm2", 2, extra, layer_tensors=tensors)
    assert (found.kv_heads, found.state_bytes) == ((0, 2), (4 * 64 * 2, 0))


def test_the_states_of_rwkv_are_those_of_its_heads(tmp_path):
    extra = {"attention.head_count": 0, "attention.head_count_kv": None, "wkv.head_size": 32, "token_shift_count": 2}
    found = header_of(tmp_path, "rwkv7", 1, extra, layer_tensors={0: ["time_mix_key.weight"]})
    assert (found.kv_heads, found.state_bytes) == ((0,), (4 * 64 * (2 + 32),))


def test_kimi_delta_attention_keeps_a_matrix_a_head(tmp_path):
    extra = {"kda.head_dim": 16, "ssm.conv_kernel": 4}
    found = header_of(tmp_path, "kimi-linear", 1, extra, layer_tensors={0: ["ssm_conv1d_q.weight"]})
    assert found.state_bytes == (4 * (3 * 3 * 4 * 16 + 4 * 16 * 16),)


def test_a_model_that_sees_all_text_at_once_caches_nothing(tmp_path):
    assert header_of(tmp_path, "bert").kv_heads == (0, 0)


def test_experts_that_are_used_make_a_layer_wide(tmp_path):
    extra = {"expert_count": 64, "expert_used_count": 8, "expert_feed_forward_length": 100, "feed_forward_length": 300}
    found = header_of(tmp_path, "qwen3moe", extra=extra)
    assert (found.expert_count, found.expert_used_count, found.feed_forward_length) == (64, 8, 800)


def test_what_lies_beyond_the_last_layer_counts_with_the_output(tmp_path):
    others = ("token_embd.weight", "output.weight", "blk.7.ffn_up.weight", "v.blk.0.ffn_up.weight")
    found = header_of(tmp_path, others=others)
    assert found.output_bytes == 3 * 128
    assert found.weight_bytes == 8 * 128


def test_a_split_model_is_the_sum_of_its_parts(tmp_path):
    whole = read_facts(str(Model(layers=5).write(tmp_path / "whole.gguf")))
    parts = Model(layers=5).split(tmp_path, 3)
    split = read_facts(str(parts[0]))
    assert split.header == whole.header
    assert split.file_bytes == sum(part.stat().st_size for part in parts)


def test_a_name_of_a_part_without_the_keys_of_one_is_a_whole_model(tmp_path):
    path = Model().write(tmp_path / "model-00001-of-00002.gguf")
    assert read_facts(str(path)).header is not None
