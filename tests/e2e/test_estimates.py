"""What admission reckons with, beside what a real worker took."""

import platform
from pathlib import Path

from rbee.core.claims import Placement
from rbee.core.sizing import need_of
from rbee.core.worker import WorkerSpec
from rbee.models.facts import read_facts
from tests.gguf_files import zero_llama
from tests.hives import example_model, running_hive

MIB = 2**20
CTX_SIZE = 768


def peak_bytes(pid: int) -> int:
    """The most that was ever resident of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024


def test_an_estimate_is_neither_under_the_real_peak_nor_far_over_it(tmp_path):
    spec = WorkerSpec("w", "example", ctx_size=CTX_SIZE, slots=1)
    need = need_of(spec, read_facts(str(example_model())), 8 * MIB, Placement(), None)
    with running_hive(tmp_path / "state", {"workers.prompt_cache": "8MiB"}) as hive:
        worker = hive.ready("example", ctx_size=CTX_SIZE, slots=1)
        # More than a batch, so that all of its scratch is touched.
        message = {"role": "user", "content": "bee " * 560}
        asked = {"model": worker["worker_id"], "messages": [message], "max_tokens": 4}
        assert hive.post("/v1/chat/completions", asked).status == 200
        peak = peak_bytes(worker["pid"]) + peak_bytes(worker["engine_pid"])
    assert peak <= need.ram.total_bytes <= peak + 100 * 10**6


def test_a_model_that_the_processor_repacks_is_in_memory_once(tmp_path):
    """Q4_0 weights of 100 MB, which would be there twice if their file were mapped."""
    path = zero_llama(tmp_path / "zeros.gguf")
    spec = WorkerSpec("w", f"file:{path}", ctx_size=CTX_SIZE, slots=1)
    need = need_of(spec, read_facts(str(path)), 8 * MIB, Placement(), None, platform.machine())
    settings = {"workers.prompt_cache": "8MiB", "models.allowed_roots": str(tmp_path)}
    with running_hive(tmp_path / "state", settings) as hive:
        worker = hive.ready(spec.model_ref, ctx_size=CTX_SIZE, slots=1)
        asked = {"model": worker["worker_id"], "prompt": "bee " * 100, "max_tokens": 4}
        assert hive.post("/v1/completions", asked).status == 200
        engine = peak_bytes(worker["engine_pid"])
        peak = peak_bytes(worker["pid"]) + engine
        mapped = Path(f"/proc/{worker['engine_pid']}/maps").read_text()
    assert str(path) not in mapped
    assert peak <= need.ram.total_bytes <= peak + 100 * 10**6
    assert need.ram.weights_bytes < 1.05 * path.stat().st_size
