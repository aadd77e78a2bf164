"""What admission reckons with, beside what a real worker took."""

from pathlib import Path

from rbee.core.claims import Placement
from rbee.core.sizing import need_of
from rbee.core.worker import WorkerSpec
from rbee.models.facts import read_facts
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
