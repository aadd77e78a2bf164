"""Whether admission's estimates hold: real models at many settings, each driven to its peak beside its estimate.

Prints a table. Exit status 1 when an estimate is under the measured peak, or further over it than the bar allows.
"""

import argparse
import http.client
import json
import platform
import random
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gemma import ensure_gemma
from bench.measure import MIB, peak_rss_bytes
from rbee.core import auth
from rbee.core.claims import Placement
from rbee.core.sizing import need_of
from rbee.core.worker import WorkerSpec
from rbee.models.facts import read_facts
from tests.hives import Hive, example_model, running_hive

OVER = 0.25
"""Of the peak, where that is above 200 MB; below, an estimate may be 100 MB over."""
SMALL, OVER_SMALL = 200 * 10**6, 100 * 10**6
BATCH = 512
WARM = 2 * BATCH + 64
"""Prompt tokens that touch a batch's whole scratch, fill a window of 512 and leave two checkpoints of one."""
ANSWER = 8
ASK_TIMEOUT = 600.0
"""Seconds for one prompt, which waits for those of the other slots."""

Q8 = ("--cache-type-k", "q8_0", "--cache-type-v", "q8_0")
EMBED = ("--embedding", "--pooling", "mean")


@dataclass(frozen=True)
class Setting:
    """``rounds`` of prompts; ``fills``: they use the whole context of all slots, else as much as is needed: keys and
    values are written at the start already."""

    ctx_size: int
    slots: int
    args: tuple[str, ...] = ()
    prompt_cache_mib: int = 0
    rounds: int = 1
    fills: bool = False

    @property
    def prompt(self) -> int:
        most = self.ctx_size - ANSWER - 8
        return most if self.fills else min(most, WARM)

    def __str__(self) -> str:
        cache = f", prompt cache {self.prompt_cache_mib} MiB" * bool(self.prompt_cache_mib)
        said = " ".join(self.args) or "f16 cache"
        return f"context {self.ctx_size}, {self.slots} slot{'s' * (self.slots > 1)}, {said}{cache}"


SETTINGS = (
    Setting(512, 1),
    Setting(2048, 4, fills=True),
    Setting(4096, 4),
    Setting(8192, 1),
    Setting(8192, 8),
    Setting(4096, 4, Q8),
    Setting(2048, 1, ("--flash-attn", "off")),
    Setting(1024, 1, prompt_cache_mib=64, rounds=5),
    Setting(512, 1, ("--no-mmap",)),
    Setting(512, 1, EMBED),
)
QUICK = (SETTINGS[0], SETTINGS[2])


@dataclass(frozen=True)
class Model:
    """``has_windows``: each slot saves its windows, so that each has to be used."""

    name: str
    ref: str
    path: Path
    has_windows: bool


@dataclass(frozen=True)
class Found:
    estimate: int
    peak: int

    @property
    def over(self) -> int:
        return self.estimate - self.peak

    @property
    def held(self) -> bool:
        return 0 <= self.over <= (OVER * self.peak if self.peak > SMALL else OVER_SMALL)


def models(folder: Path) -> Iterator[Model]:
    yield Model("SmolLM2-135M Q4_1", "example", example_model(), has_windows=False)
    gemma = ensure_gemma(folder)
    yield Model("Gemma 3 270M Q4_K_M", f"file:{gemma}", gemma, has_windows=True)


def measure(model: Model, setting: Setting, folder: Path) -> Found:
    """A worker of a real hive, from its start to the most that its two processes ever had in memory."""
    cache = setting.prompt_cache_mib * MIB
    spec = WorkerSpec("w", model.ref, ctx_size=setting.ctx_size, slots=setting.slots, engine_args=setting.args)
    need = need_of(spec, read_facts(str(model.path)), cache, Placement(), None, platform.machine())
    chosen = {"workers.prompt_cache": str(cache), "models.allowed_roots": str(model.path.parent)}
    with running_hive(folder, chosen) as hive:
        fields = {"ctx_size": setting.ctx_size, "slots": setting.slots, "engine_args": list(setting.args)}
        worker = hive.ready(model.ref, **fields)
        drive(hive, worker, setting, setting.slots if setting.fills or model.has_windows else 1)
        peak = peak_rss_bytes(worker["pid"]) + peak_rss_bytes(worker["engine_pid"])
    return Found(need.ram.total_bytes, peak)


def drive(hive: Hive, worker: dict[str, Any], setting: Setting, slots: int) -> None:
    """Prompts that share no beginning: each fills a slot and, where there is a cache, leaves what it found to that."""
    port = int(worker["url"].rpartition(":")[2])
    key = auth.engine_key((hive.state_dir / "secret").read_bytes(), worker["worker_id"], 1)
    with ThreadPoolExecutor(slots) as askers:
        asked = [askers.submit(_ask, port, key, setting) for _ in range(slots * setting.rounds)]
        for answer in asked:
            answer.result()


def _ask(port: int, key: str, setting: Setting) -> None:
    tokens = [random.randrange(1000, 40_000) for _ in range(setting.prompt)]
    path, body = "/completion", {"prompt": tokens, "n_predict": ANSWER, "ignore_eos": True}
    if setting.args == EMBED:
        path, body = "/v1/embeddings", {"input": tokens}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ASK_TIMEOUT)
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    connection.request("POST", path, json.dumps(body), headers)
    answer = connection.getresponse()
    said = answer.read()
    connection.close()
    if answer.status != 200:
        raise RuntimeError(said)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two settings a model")
    parser.add_argument("--models", type=Path, default=Path(".bench"), help="where the second model is kept")
    chosen = parser.parse_args()
    chosen.models.mkdir(parents=True, exist_ok=True)
    missed = 0
    print("| model | settings | estimate | measured peak | over by | | held |\n|---|---|---|---|---|---|---|")
    for model in models(chosen.models.resolve()):
        for setting in QUICK if chosen.quick else SETTINGS:
            with tempfile.TemporaryDirectory(prefix="rbee-bench-") as folder:
                found = measure(model, setting, Path(folder) / "state")
            missed += not found.held
            sizes = " | ".join(f"{size / MIB:.0f} MiB" for size in (found.estimate, found.peak, found.over))
            held = "yes" if found.held else "**no**"
            print(f"| {model.name} | {setting} | {sizes} | {found.over / found.peak:.1%} | {held} |", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
