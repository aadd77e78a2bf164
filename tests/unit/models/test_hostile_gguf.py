"""Headers that lie: refused with a sentence that says what is wrong, in little time and memory."""

import os
import struct
import tracemalloc

import pytest

from rbee.core.errors import ModelNotFound, NotAModelFile
from rbee.models.facts import read_facts
from rbee.models.gguf import MAX_STEPS
from tests.gguf_files import ARRAY, STRING, U32, Model, header, sized, tensor, text

KEYS = list(Model().keys.items())
HUGE = 2**63


def array(kind, count, content=b""):
    return struct.pack("<IIQ", ARRAY, kind, count) + content


def raw_tensor(name=b"t", rank=1, shape=(32,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", rank, *shape, kind, offset)


HOSTILE = {
    "not GGUF": (b"GGML" + bytes(100), "does not start with 'GGUF'"),
    "short": (b"GGUF" + bytes(10), "cut off after 14 bytes"),
    "empty": (b"", "cut off after 0 bytes"),
    "version 1": (header([], version=1), "GGUF version 1"),
    "a version to come": (header([], version=4), "GGUF version 4"),
    "big endian": (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "big-endian"),
    "2^63 keys": (header([], key_count=HUGE), f"claims {HUGE} keys"),
    "10^9 tensors": (header([], tensor_count=10**9), "claims 1000000000 tensors"),
    "a key past the end": (header([], key_count=1) + struct.pack("<Q", 1000), "cut off, or damaged"),
    "a key of 2^63 bytes": (header([], key_count=1) + struct.pack("<Q", HUGE), f"of {HUGE} bytes"),
    "a text past the end": (header([("a", struct.pack("<IQ", STRING, 99))]), "at the key 'a'"),
    "2^63 tokens": (header([("tokenizer.ggml.tokens", array(STRING, HUGE))]), "more than any model"),
    "2^63 scores": (header([("tokenizer.ggml.scores", array(U32, HUGE))]), "cut off, or damaged"),
    "2^63 of what is kept": (header([("llama.attention.head_count", array(U32, HUGE))]), "cut off, or damaged"),
    "a token past the end": (header([("t", array(STRING, 2, struct.pack("<QQ", 0, HUGE)))]), "cut off, or damaged"),
    "a token of 2^64 - 1": (header([("t", array(STRING, 2, struct.pack("<QQ", 2**64 - 1, 0)))]), "cut off, or dam"),
    "the last token past the end": (header([("t", array(STRING, 1, struct.pack("<Q", 9)))]), "cut off, or damaged"),
    "arrays in an array": (header([("a", array(ARRAY, 1, array(U32, 1, bytes(4))))]), "arrays in an array"),
    "an unknown type": (header([("a", struct.pack("<II", 77, 0))]), "unknown type 77"),
    "an array of an unknown type": (header([("a", array(77, 1, bytes(8)))]), "unknown type 77"),
    "a key twice": (header([("a", 1), ("a", 2)]), "the key 'a' twice"),
    "no alignment": (header([("general.alignment", 0)]), "alignment of 0"),
    "a crooked alignment": (header([("general.alignment", 48)]), "alignment of 48"),
    "an alignment in words": (header([("general.alignment", "32")]), "alignment of '32'"),
    "a tensor twice": (sized(header(KEYS, [tensor("t", (32,))] * 2), 128), "the tensor 't' twice"),
    "a long name": (sized(header(KEYS, [tensor("t" * 64, (32,))]), 128), "of 64 bytes; 63 is the most"),
    "2^31 dimensions": (sized(header(KEYS, [raw_tensor(rank=2**31)]), 128), "2147483648 dimensions"),
    "elements that overflow": (sized(header(KEYS, [tensor("t", (2**40, 2**40))]), 128), "more elements"),
    "elements that overflow beside a zero": (sized(header(KEYS, [tensor("t", (0, 2**63))]), 128), "more elements"),
    "half a block": (sized(header(KEYS, [tensor("t", (48,), 12)]), 128), "no whole blocks of Q4_K"),
    "an offset between": (sized(header(KEYS, [tensor("t", (32,), 0, 7)]), 999), "not aligned to 32"),
    "an offset past the end": (sized(header(KEYS, [tensor("t", (32,), 0, 2**62)]), 128), "is cut off"),
    "an unknown tensor past the end": (sized(header(KEYS, [tensor("t", (32,), 99, 2**62)]), 128), "is cut off"),
    "tensors that are not told": (sized(header(KEYS, tensor_count=3), 0), "cut off, or damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused_with_what_is_wrong(tmp_path, name):
    raw, words = HOSTILE[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(raw)
    with pytest.raises(NotAModelFile) as refused:
        read_facts(str(path))
    assert words in refused.value.message
    assert str(path) in refused.value.message
    assert refused.value.details == {"field": "model_ref"}


def test_a_file_cut_off_among_its_tensors_is_told_with_both_numbers(tmp_path):
    path = Model().write(tmp_path / "model.gguf")
    size = path.stat().st_size
    os.truncate(path, size - 1)
    with pytest.raises(NotAModelFile, match=f"reach to byte {size}, and it has {size - 1}"):
        read_facts(str(path))


@pytest.mark.parametrize("step", range(7))
def test_a_header_cut_anywhere_is_refused(tmp_path, step):
    path = tmp_path / "model.gguf"
    raw = header([*KEYS, ("tokenizer.ggml.tokens", ["a", "bc"])], [tensor("token_embd.weight", (32,))])
    for size in range(step, len(raw), 7):
        path.write_bytes(raw[:size])
        with pytest.raises(NotAModelFile):
            read_facts(str(path))


def test_a_header_full_of_empty_strings_takes_no_memory(tmp_path):
    """The file has holes where its strings are, so it costs its writer nothing."""
    path = tmp_path / "model.gguf"
    path.write_bytes(header([("a", array(STRING, MAX_STEPS * 9 // 10))], key_count=9))
    os.truncate(path, 2**40)
    tracemalloc.start()
    try:
        with pytest.raises(NotAModelFile, match="key '' twice"):
            read_facts(str(path))
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


def test_tokens_and_tensors_are_bounded_together(tmp_path):
    path = tmp_path / "model.gguf"
    tensors = [tensor(f"blk.{number}.t", (32,), 0, 128 * number) for number in range(5000)]
    for count, words in ((600_000, None), (900_000, "longer header than any model")):
        tokens = ("tokenizer.ggml.tokens", array(STRING, count, bytes(8 * count)))
        path.write_bytes(sized(header([*KEYS, tokens], tensors), 128 * len(tensors)))
        assert refusal(path, words)


def test_strings_that_lie_far_apart_are_bounded_by_what_is_read_for_them(tmp_path):
    """The file has holes between its strings, so it costs its writer a block for each."""
    path, length = tmp_path / "model.gguf", 2**20
    start = header([("tokenizer.ggml.tokens", array(STRING, 4000))])
    with path.open("wb") as file:
        for number in range(4000):
            file.seek(len(start) + number * (8 + length))
            file.write(struct.pack("<Q", length))
        file.seek(0)
        file.write(start)
        file.truncate(len(start) + 4000 * (8 + length))
    assert refusal(path, "longer header than any model")


def test_the_strings_of_all_parts_count_together(tmp_path):
    parts = Model().split(tmp_path, 3)
    for number, part in enumerate(parts[1:], 1):
        keys = [("split.no", number), ("split.count", 3), ("t", array(STRING, 600_000, bytes(8 * 600_000)))]
        part.write_bytes(header(keys))
    assert refusal(parts[0], r"model-00003-of-00003\.gguf' has a longer header than any model")


def refusal(path, words):
    """Whether the model is refused with these words; without words, that it is read."""
    if words is None:
        return read_facts(str(path)).header is not None
    with pytest.raises(NotAModelFile, match=words):
        read_facts(str(path))
    return True


def test_lists_by_the_thousand_take_no_memory(tmp_path):
    path = tmp_path / "model.gguf"
    lists = [(f"llama.list{number}", [1] * 4096) for number in range(2000)]
    path.write_bytes(header([*lists, ("llama.longer", [1] * 2_000_000)]))
    tracemalloc.start()
    try:
        with pytest.raises(NotAModelFile, match="no tensors"):
            read_facts(str(path))
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


def test_a_number_of_layers_that_no_model_has_leaves_the_size_of_the_file(tmp_path):
    path = Model(extra={"block_count": 2**31}, layers=1).write(tmp_path / "model.gguf")
    assert read_facts(str(path)).header is None


def test_a_part_that_is_missing_is_named(tmp_path):
    parts = Model().split(tmp_path, 3)
    parts[1].unlink()
    with pytest.raises(ModelNotFound, match=r"model-00002-of-00003\.gguf', part 2 of 3"):
        read_facts(str(parts[0]))


def test_a_later_part_is_refused_and_the_first_one_named(tmp_path):
    parts = Model().split(tmp_path, 3)
    with pytest.raises(NotAModelFile, match=r"is part 2 of a model; name its first part, model-00001-of-00003\.gguf"):
        read_facts(str(parts[1]))


def test_parts_that_are_mixed_up_are_refused(tmp_path):
    parts = Model().split(tmp_path, 3)
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(NotAModelFile, match="named as part 2 of 3, and its header says otherwise"):
        read_facts(str(parts[0]))


def test_a_first_part_under_another_name_is_refused(tmp_path):
    part = Model().split(tmp_path, 2)[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(NotAModelFile, match="one of 2 parts, and not named so"):
        read_facts(str(part))


def test_a_later_part_under_the_name_of_the_first_is_refused(tmp_path):
    parts = Model().split(tmp_path, 2)
    parts[1].replace(parts[0])
    with pytest.raises(NotAModelFile, match="is part 2 of a model by its header"):
        read_facts(str(parts[0]))


def test_a_crowd_of_parts_is_refused_before_any_is_looked_for(tmp_path):
    path = Model().write(tmp_path / "model-00001-of-99999.gguf")
    with pytest.raises(NotAModelFile, match="one of 99999 parts"):
        read_facts(str(path))


def test_a_cut_part_is_named(tmp_path):
    parts = Model().split(tmp_path, 2)
    os.truncate(parts[1], parts[1].stat().st_size - 1)
    with pytest.raises(NotAModelFile, match=r"model-00002-of-00002\.gguf' is cut off"):
        read_facts(str(parts[0]))
