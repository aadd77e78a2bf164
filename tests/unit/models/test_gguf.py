"""The header of one file, as converters write it."""

import os

import pytest

from rbee.core.errors import ModelNotFound, NotAModelFile
from rbee.models.facts import read_facts
from rbee.models.ggml_types import TYPES
from tests.gguf_files import F16_TYPE, F32_TYPE, Q4_K_TYPE, Model, header, sized, tensor
from tests.hives import example_model

KEYS = list(Model().keys.items())


def facts_of(path, raw):
    path.write_bytes(raw)
    return read_facts(str(path))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.gguf"


def test_the_example_model_is_read():
    found = read_facts(str(example_model()))
    header = found.header
    assert header is not None
    assert (header.architecture, header.quantization, header.vocabulary) == ("llama", "Q4_1", 49152)
    assert (header.layers, header.heads[0], header.kv_heads[0], header.key_length) == (30, 9, 3, 64)
    assert header.is_tied
    assert 0 < found.file_bytes - header.weight_bytes < 2 * 2**20


def test_bytes_go_to_input_layers_and_output_by_the_names_of_tensors(path):
    names = ["token_embd.weight", "blk.0.attn_k.weight", "blk.1.ffn_up.weight", "output.weight", "output_norm.weight"]
    rows = [3, 1, 2, 3, 1]
    tensors = [tensor(name, (32, count)) for name, count in zip(names, rows, strict=True)]
    found = facts_of(path, sized(header(KEYS, tensors), 3 * 128)).header
    assert found is not None
    assert found.input_bytes == 3 * 128
    assert found.layer_bytes == (128, 256)
    assert found.output_bytes == 4 * 128
    assert (found.vocabulary, found.is_tied, found.tied_bytes, found.tied_type) == (3, False, 0, "")


def test_embeddings_that_serve_as_output_are_told(path):
    found = read_facts(str(Model(others=("token_embd.weight", "per_layer_token_embd.weight")).write(path))).header
    assert found is not None
    assert (found.is_tied, found.tied_bytes, found.tied_type, found.input_bytes) == (True, 128, "F32", 256)


@pytest.mark.parametrize("kind", TYPES)
def test_each_type_of_tensor_takes_what_its_blocks_take(path, kind):
    name, block, block_bytes = TYPES[kind]
    tensors = [tensor("token_embd.weight", (block * 2, 5), kind)]
    found = facts_of(path, sized(header(KEYS, tensors), block_bytes * 10)).header
    assert found is not None
    assert found.input_bytes == block_bytes * 10
    assert found.quantization == name


def test_the_type_that_holds_most_bytes_names_the_quantisation(path):
    kinds = {"blk.0.attn_norm.weight": F32_TYPE, "blk.0.ffn_up.weight": Q4_K_TYPE, "blk.1.ffn_up.weight": F16_TYPE}
    tensors = [tensor(name, (256,), kind) for name, kind in kinds.items()]
    tensors.append(tensor("token_embd.weight", (256, 9), Q4_K_TYPE))
    found = facts_of(path, sized(header(KEYS, tensors), 256 * 9)).header
    assert found is not None
    assert found.quantization == "Q4_K"


def test_an_unknown_type_of_tensor_leaves_the_size_of_the_file(path):
    raw = sized(header(KEYS, [tensor("token_embd.weight", (32,), 99)]), 1000)
    found = facts_of(path, raw)
    assert (found.header, found.file_bytes) == (None, len(raw))


@pytest.mark.parametrize("name", ["block_count", "embedding_length", "attention.head_count"])
def test_without_what_counts_the_size_of_the_file_is_left(path, name):
    assert read_facts(str(Model(extra={name: None}).write(path))).header is None


def test_version_2_is_read(path):
    assert facts_of(path, sized(header(KEYS, [tensor("token_embd.weight", (32,))], version=2), 128)).header


def test_tokens_are_counted_where_no_tensor_tells_the_vocabulary(path):
    keys = [*KEYS, ("tokenizer.ggml.tokens", ["a", "", "b" * 300])]
    found = facts_of(path, sized(header(keys, [tensor("output.weight", (32,))]), 128)).header
    assert found is not None
    assert found.vocabulary == 3


def test_what_stands_after_tokens_and_long_text_is_read(path):
    """The window moves: tokens, scores and a blob that are larger than it lie before the tensors."""
    tokens = [f"token {number} " * (number % 7) for number in range(100_000)]
    keys = [
        ("tokenizer.ggml.tokens", tokens),
        ("tokenizer.ggml.scores", [0.5] * len(tokens)),
        ("tokenizer.huggingface.json", "x" * 3_000_000),
        *KEYS,
    ]
    found = facts_of(path, sized(header(keys, [tensor("token_embd.weight", (32, 7))]), 7 * 128)).header
    assert found is not None
    assert (found.layers, found.vocabulary) == (2, 7)


def test_an_alignment_of_its_own_is_kept(path):
    keys = [*KEYS, ("general.alignment", 4096)]
    raw = header(keys, [tensor("token_embd.weight", (32,)), tensor("output.weight", (32,), F32_TYPE, 4096)])
    assert facts_of(path, raw + bytes(-len(raw) % 4096 + 4096 + 128)).header
    with pytest.raises(NotAModelFile, match="cut off"):
        facts_of(path, raw + bytes(-len(raw) % 4096 + 4096 + 127))


def test_a_file_that_is_missing_or_may_not_be_read_is_not_found(path):
    with pytest.raises(ModelNotFound, match="No such file"):
        read_facts(str(path))


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    for name in ("pipe.gguf", "."):
        with pytest.raises(NotAModelFile, match="special file"):
            read_facts(str(tmp_path / name))


@pytest.mark.parametrize("kind", ["adapter", "imatrix", "mmproj"])
def test_what_belongs_to_a_model_is_not_one(path, kind):
    with pytest.raises(NotAModelFile, match=r"name (the language|the|a) model"):
        read_facts(str(Model(general={"general.type": kind}).write(path)))


def test_an_old_projector_without_a_type_is_known_by_its_architecture(path):
    with pytest.raises(NotAModelFile, match="projector"):
        read_facts(str(Model("clip").write(path)))


def test_a_vocabulary_alone_is_no_model(path):
    with pytest.raises(NotAModelFile, match="no tensors"):
        facts_of(path, header(KEYS))
