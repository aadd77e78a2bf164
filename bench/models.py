"""How long it takes to learn what a model's header says: from its file, and again from memory."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import anyio

from bench.measure import Row, at_most
from rbee.models.facts import read_facts
from rbee.models.sizer import HeaderSizer
from rbee.storage.models import ModelStore
from tests.gguf_files import Model

VOCABULARY = 150_000
READS = 15
CACHED = 1000


def headers(folder: Path) -> Iterator[Row]:
    path = str(_large_header(folder / "large.gguf"))
    times = []
    for _ in range(READS):
        begin = time.perf_counter()
        found = read_facts(path)
        times.append((time.perf_counter() - begin) * 1000)
        assert found.header is not None
    what = f"header of {VOCABULARY // 1000} k tokens and as many merges, median of {READS}"
    yield at_most(f"first read of a {what}", statistics.median(times), 150, "ms", max(times))
    again = anyio.run(_cached, folder, path)
    yield at_most(f"the same from memory, median of {CACHED}", statistics.median(again), 1, "ms", max(again))


async def _cached(folder: Path, path: str) -> list[float]:
    store = ModelStore(folder / "models.db")
    sizer = HeaderSizer(store)
    await sizer.facts(path)
    times = []
    for _ in range(CACHED):
        begin = time.perf_counter()
        await sizer.facts(path)
        times.append((time.perf_counter() - begin) * 1000)
    store.close()
    return times


def _large_header(path: Path) -> Path:
    tokenizer = {
        "tokenizer.ggml.tokens": [f"Ġtoken{number}" for number in range(VOCABULARY)],
        "tokenizer.ggml.token_type": [1] * VOCABULARY,
        "tokenizer.ggml.merges": [f"Ġto ken{number}" for number in range(VOCABULARY)],
        "tokenizer.chat_template": "{{ messages }}" * 500,
    }
    return Model("qwen3", 36, general=tokenizer).write(path)
