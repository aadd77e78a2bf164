"""What an answer of POST /v1/admission takes beside 100 workers on 8 GPUs, through HTTP and without it."""

import http.client
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.measure import MIB, Row, at_most, cpu_seconds, percentile, seconds_until, tcp
from rbee.core import sizing
from rbee.core.admission import Demand, Limits, decide
from rbee.core.claims import Claim, Holding, Need, Placement
from rbee.core.model_header import ModelFacts
from rbee.core.resources import DeviceReading, DiskReading, MachineReading, MemoryReading
from rbee.core.worker import WorkerSpec
from rbee.models.facts import read_facts
from tests.gguf_files import Model
from tests.hives import example_model, running_hive
from tests.stand_in_nvml import GIB, stand_in

WORKERS = 100
GPUS = 8
CALLERS = 16
CALLS = 400
BAR = 10
LIMIT = 180.0
EACH = 1 * GIB
"""Video memory that each worker claims; none is ever taken."""


def admission(folder: Path) -> Iterator[Row]:
    example_model()
    with stand_in(folder, gpus=GPUS) as driver:
        settings = {"limits.min_free_memory": "64MiB", "limits.min_free_disk": "0", "limits.max_worker_memory": "64GiB"}
        with running_hive(folder / "admission", settings, environ=driver.environ) as hive:
            with ThreadPoolExecutor(CALLERS) as callers:
                spawn = partial(hive.spawn, backend="cuda", engine_args=["--vram-bytes", str(EACH)])
                list(callers.map(lambda number: spawn(f"synthetic:m{number}"), range(WORKERS)))
            seconds_until(lambda: _idle(hive.get("/v1/workers").json) == WORKERS, LIMIT, 0.1)
            free = sum(device["left_bytes"] for device in hive.get("/v1/resources").json["devices"])
            asked: dict[str, tuple[dict[str, Any], bool]] = {
                "a synthetic worker that fits": (_on_gpus(GIB), True),
                "one on all devices, refused with advice": (_on_gpus(free), False),
                "one on no device, refused without": (_on_gpus(10 * free), False),
                "the example model on the processor": ({"model_ref": "example", "backend": "cpu"}, True),
                "the same with 4 M tokens, refused": (
                    {"model_ref": "example", "backend": "cpu", "ctx_size": 4_000_000},
                    False,
                ),
            }
            assert hive.process is not None
            for what, (body, fits) in asked.items():
                before = cpu_seconds(hive.process.pid)
                yield _timed(f"POST /v1/admission: {what}", _asker(tcp(hive.port), body, fits))
                each = (cpu_seconds(hive.process.pid) - before) / CALLS * 1000
                yield Row("the processor time of the hive for one of these", f"{each:.2g} ms", "")
    yield from _decisions(folder)


def _on_gpus(vram_bytes: int) -> dict[str, Any]:
    return {"model_ref": "synthetic:x", "backend": "cuda", "engine_args": ["--vram-bytes", str(vram_bytes)]}


def _asker(connection: http.client.HTTPConnection, body: dict[str, Any], fits: bool) -> Callable[[], None]:
    """Asks over one connection that is kept open, as a client in a loop would."""
    data, headers = json.dumps(body).encode(), {"content-type": "application/json"}

    def ask() -> None:
        connection.request("POST", "/v1/admission", data, headers)
        answer = connection.getresponse()
        verdict = json.loads(answer.read())
        assert (answer.status, verdict.get("fits")) == (200, fits), verdict

    return ask


def _timed(what: str, work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> Row:
    work()
    times = []
    for _ in range(CALLS):
        begin = clock()
        work()
        times.append((clock() - begin) * 1000)
    return at_most(
        f"{what}, p99 of {CALLS}, p50 {percentile(times, 50):.3g} ms", percentile(times, 99), BAR, "ms", max(times)
    )


def _decisions(folder: Path) -> Iterator[Row]:
    """The decision alone, on a model of 80 layers with the estimate from its header."""
    facts = read_facts(str(Model("llama", 80).write(folder / "model.gguf")))
    assert facts.header is not None
    for what, left, layer_bytes, ctx_size in (
        ("fits on one device", 64 * GIB, GIB // 4, 4096),
        ("fits on six", 8 * GIB, GIB // 2, 4096),
        ("refused, a smaller context or idle workers advised", 8 * GIB, GIB // 4, 16 * 2**20),
        ("refused, idle workers advised", 3 * GIB, GIB, 4096),
    ):
        header = replace(facts.header, layer_bytes=(layer_bytes,) * facts.header.layers)
        # It waits for nothing, so that what others do on the machine need not be in it.
        work = _decision(replace(facts, header=header), left, ctx_size)
        yield _timed(f"the decision alone, of the processor: {what}", work, time.thread_time)


def _decision(facts: ModelFacts, left: int, ctx_size: int) -> Callable[[], object]:
    """On a model with these *facts*, where *left* bytes are left on each device beside WORKERS idle workers."""
    spec = WorkerSpec("", "file:/model.gguf", ctx_size=ctx_size)

    def size(placement: Placement, ctx_size: int) -> Need:
        return sizing.need_of(replace(spec, ctx_size=ctx_size), facts, 512 * MIB, placement, None)

    devices = tuple(DeviceReading("cuda", n, "GPU", 80 * GIB, left + GIB, f"GPU-{n}") for n in range(GPUS))
    disk, memory = DiskReading("/", 100 * GIB, 100 * GIB), MemoryReading(512 * GIB, 512 * GIB)
    machine = MachineReading(0.0, memory, disk, disk, devices)
    worker = WorkerSpec("", "synthetic:m", engine="synthetic", engine_args=("--vram-bytes", str(2 * GIB)))
    holdings = []
    for number in range(WORKERS):
        placement = Placement("cuda", (number % GPUS,), (1.0,))
        claim = Claim(placement, sizing.need_of(worker, ModelFacts(0), 0, placement, None))
        holdings.append(Holding(f"w-{number}", "synthetic:m", claim, 0, None, True, True))
    demand = Demand("m", "cuda", devices, ctx_size, size)
    return partial(decide, demand, machine, holdings, Limits(512 * GIB, GIB, GIB, 0))


def _idle(answer: dict[str, list[dict[str, str]]]) -> int:
    return sum(worker["state"] == "idle" for worker in answer["workers"])
