"""Fuzzes the header reader with atheris: so many inputs, each held to its time and memory. Run by ``make fuzz``.

    python -m tests.fuzz.gguf_header --inputs 100000 [--seed 1]

An input is a whole file, or the second part of a model of two. Exit status 1 when one breaks a limit, or the reader
raises what it should not.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["rbee.models"]):
    from rbee.core.errors import ModelNotFound, NotAModelFile
    from rbee.models.facts import read_facts

from tests.fuzz.seeds import second_part, seeds

MAX_SECONDS = 0.1
"""Of processor time: what else runs on the machine is not the reader's."""
MAX_BYTES = 64 * 2**20
MAX_INPUT_BYTES = 16_384


class Harness:
    def __init__(self, folder: Path, inputs: int) -> None:
        self.folder = folder
        self.inputs = inputs
        self.done = self.read = 0
        self.slowest = 0.0
        self.largest = 0

    def take(self, data: bytes) -> None:
        is_part = bool(data) and data[0] % 4 == 3
        name = "model-00002-of-00002.gguf" if is_part else "model.gguf"
        (self.folder / name).write_bytes(data[1:])
        asked = self.folder / ("model-00001-of-00002.gguf" if is_part else name)
        tracemalloc.reset_peak()
        before, begin = tracemalloc.get_traced_memory()[0], time.process_time()
        with contextlib.suppress(NotAModelFile, ModelNotFound):
            self.read += read_facts(str(asked)).header is not None
        self._judge(time.process_time() - begin, tracemalloc.get_traced_memory()[1] - before)

    def _judge(self, seconds: float, size: int) -> None:
        self.done += 1
        self.slowest, self.largest = max(self.slowest, seconds), max(self.largest, size)
        if seconds > MAX_SECONDS or size > MAX_BYTES:
            raise AssertionError(f"an input took {seconds * 1000:.1f} ms and {size} bytes")
        if self.done == self.inputs:
            print(
                f"gguf header, atheris: {self.done} inputs, {self.read} of them read as models, slowest "
                f"{self.slowest * 1000:.2f} ms, most memory {self.largest / 2**20:.2f} MiB",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rbee-fuzz-") as place:
        folder, corpus = Path(place) / "models", Path(place) / "corpus"
        folder.mkdir()
        corpus.mkdir()
        for number, raw in enumerate(seeds()):
            (corpus / str(number)).write_bytes(b"\0" + raw)
        (corpus / "part").write_bytes(b"\3" + second_part(folder))
        tracemalloc.start()
        harness = Harness(folder, chosen.inputs)
        options = [f"-runs={chosen.inputs}", f"-seed={chosen.seed}", f"-max_len={MAX_INPUT_BYTES}", "-verbosity=0"]
        # libFuzzer ends the process itself, so what it leaves behind has to be of a child.
        child = os.fork()
        if child == 0:
            os.chdir(place)
            atheris.Setup([sys.argv[0], *options, str(corpus)], harness.take)
            atheris.Fuzz()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sys.exit(1 if status else 0)


if __name__ == "__main__":
    main()
