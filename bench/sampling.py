"""The bars of measuring: what 100 workers use, every 5 s, and what the machine has left, at each admission."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio

from bench.measure import Row, at_most, percentile, seconds_until
from rbee.core.resources import EngineBuild
from rbee.nodes import footprints
from rbee.nodes.disk import Disk
from rbee.nodes.machine import LocalMachine
from tests.hives import running_hive

WORKERS = 100
CALLERS = 16
SAMPLES = 50
INTERVAL = 5.0
"""Seconds between two samples of a hive: monitor.memory_interval."""
EXACT = 20
HELD = 1 << 30
LOOKS = 2000
LIMIT = 120.0


def sampling(folder: Path) -> Iterator[Row]:
    with running_hive(folder / "sampling") as hive, ThreadPoolExecutor(CALLERS) as callers:
        list(callers.map(lambda number: hive.spawn(f"synthetic:m{number}"), range(WORKERS)))
        seconds_until(lambda: _idle(hive.get("/v1/workers").json) == WORKERS, LIMIT, 0.1)
        workers = hive.get("/v1/workers").json["workers"]
        pids = sorted(pid for worker in workers for pid in (worker["pid"], worker["engine_pid"]))
        used = [_processor_seconds(lambda: footprints.measure(pids)) / INTERVAL * 100 for _ in range(SAMPLES)]
        what = f"sampling {WORKERS} workers every {INTERVAL:g} s, mean of {SAMPLES}: processor"
        yield at_most(what, sum(used) / len(used), 1.0, "% of a core", max(used))
        big = hive.ready("synthetic:big", engine_args=["--hold-bytes", str(HELD)])["pid"]
        taken = [_processor_seconds(lambda: footprints.measure_exactly(big)) * 1000 for _ in range(EXACT)]
        yield Row(f"one exact measure of {HELD >> 30} GiB, mean of {EXACT}", f"{sum(taken) / EXACT:.3g} ms", "")
        waits = [wait * 1000 for wait in anyio.run(_looks, folder, backend_options={"use_uvloop": True})]
    what = f"a look at memory and disks beside {WORKERS} workers, p99 of {LOOKS}"
    yield at_most(what, percentile(waits, 99), 10, "ms", max(waits))


def _idle(answer: dict[str, list[dict[str, str]]]) -> int:
    return sum(worker["state"] == "idle" for worker in answer["workers"])


def _processor_seconds(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


async def _looks(folder: Path) -> list[float]:
    machine = LocalMachine(Disk(folder / "models"), Disk(folder), _no_build)
    waits = []
    for _ in range(LOOKS):
        begin = time.perf_counter()
        await machine.look()
        waits.append(time.perf_counter() - begin)
    return waits


async def _no_build(_python: str) -> EngineBuild:
    return EngineBuild()
