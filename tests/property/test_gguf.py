"""Any damage to a header: either a model, or a refusal in words; never anything else, and never much memory."""

import gc
import os
import struct
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbee.core.errors import ModelNotFound, NotAModelFile, RequestError
from rbee.core.model_header import ModelFacts
from rbee.models.facts import read_facts
from tests.fuzz.seeds import second_part, seeds

INPUTS = int(os.environ.get("INPUTS", "2000"))
MAX_BYTES = 64 * 2**20
MAX_SECONDS = 0.1
SEEDS = seeds()
NUMBERS = [0, 1, 2, 7, 9, 31, 255, 2**16, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]
PLACES = st.integers(0, 1200)
EDITS = st.one_of(
    st.tuples(st.just("byte"), PLACES, st.integers(0, 255)),
    st.tuples(st.just("long"), PLACES, st.sampled_from(NUMBERS)),
    st.tuples(st.just("number"), PLACES, st.sampled_from(NUMBERS)),
    st.tuples(st.just("insert"), PLACES, st.binary(max_size=32)),
    st.tuples(st.just("remove"), PLACES, st.integers(1, 200)),
    st.tuples(st.just("repeat"), PLACES, st.integers(1, 200)),
    st.tuples(st.just("cut"), PLACES, st.just(0)),
)


def edited(raw: bytes, edits: Sequence[tuple[str, int, int | bytes]]) -> bytes:
    for kind, place, what in edits:
        at = place % (len(raw) + 1)
        match kind, what:
            case "byte", int():
                raw = raw[:at] + bytes([what]) + raw[at + 1 :]
            case "long", int():
                raw = raw[:at] + struct.pack("<Q", what) + raw[at + 8 :]
            case "number", int():
                raw = raw[:at] + struct.pack("<I", what % 2**32) + raw[at + 4 :]
            case "insert", bytes():
                raw = raw[:at] + what + raw[at:]
            case "remove", int():
                raw = raw[:at] + raw[at + what :]
            case "repeat", int():
                raw = raw[: at + what] + raw[at : at + what] + raw[at + what :]
            case _:
                raw = raw[:at]
    return raw


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory(prefix="rbee-gguf-") as place:
        yield Path(place)


@pytest.fixture(scope="module")
def part(folder):
    return second_part(folder)


@pytest.fixture(scope="module")
def slowest():
    """The most processor time that one input took; told at the end, for a run by hand."""
    found = [0.0]
    yield found
    print(f"gguf header, hypothesis: {INPUTS} examples a test, slowest {found[0] * 1000:.2f} ms")  # noqa: T201


def check(path: Path, slowest: list[float]) -> None:
    found: ModelFacts | RequestError
    gc.disable()  # a collection of what hypothesis holds would count as the reader's time
    tracemalloc.start()
    begin = time.process_time()
    try:
        found = read_facts(str(path))
    except (NotAModelFile, ModelNotFound) as refused:
        found = refused
    finally:
        took, peak = time.process_time() - begin, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        gc.enable()
    if isinstance(found, ModelFacts):
        assert msgspec.json.decode(msgspec.json.encode(found), type=ModelFacts) == found
    else:
        assert found.message.endswith(".")
    slowest[0] = max(slowest[0], took)
    assert peak < MAX_BYTES
    # A machine that does much else may add to it; a reader that follows a number in the header takes minutes.
    assert took < 20 * MAX_SECONDS


@settings(max_examples=INPUTS, deadline=None)
@given(seed=st.sampled_from(SEEDS), edits=st.lists(EDITS, max_size=6))
def test_a_damaged_model_is_read_or_refused(folder, slowest, seed, edits):
    path = folder / "model.gguf"
    path.write_bytes(edited(seed, edits))
    check(path, slowest)


@settings(max_examples=max(1, INPUTS // 4), deadline=None)
@given(edits=st.lists(EDITS, max_size=4))
def test_a_damaged_part_is_read_or_refused(folder, part, slowest, edits):
    (folder / "model-00002-of-00002.gguf").write_bytes(edited(part, edits))
    check(folder / "model-00001-of-00002.gguf", slowest)
