"""Faults at random into real hives that serve all the time, one after the other; what holds, and what came of each.

Exit status 1 when anything that is promised did not hold: then the seed, the history and the hive's log are told.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

from tests.chaos import disks, table
from tests.chaos import hive_faults as _hive_faults
from tests.chaos import load_faults as _load_faults
from tests.chaos import promise_faults as _promise_faults
from tests.chaos import worker_faults as _worker_faults
from tests.chaos import world_faults as _world_faults
from tests.chaos.catalog import FAULTS, Fault
from tests.chaos.lane import Lane, Ledger, MakeStage, as_json, seed_of
from tests.chaos.stage import Stage, free_ports

_BY_IMPORT = (_hive_faults, _load_faults, _promise_faults, _worker_faults, _world_faults)
"""Their functions enter themselves into FAULTS."""

LANES = 2
"""Most of a fault is waiting: two at once cost hardly more time than one."""
BREAK_OFF_TIMEOUT = 20.0
"""Seconds for a lane to see that its hive was taken away."""


def chosen(only: str | None, available: set[str]) -> list[Fault]:
    """The faults to use: those of *only* (names or their beginnings, semicolons between), as far as they can be."""
    wanted = [name.strip() for name in only.split(";")] if only else [""]
    found = [fault for fault in FAULTS.values() if any(_is_meant(fault, name) for name in wanted)]
    usable = [fault for fault in found if fault.needs <= available]
    for fault in found:
        if fault not in usable:
            print(f"Left out: {fault.name} (needs {', '.join(fault.needs - available)})")
    return usable


def _is_meant(fault: Fault, name: str) -> bool:
    return fault.name == name if name in FAULTS else fault.name.startswith(name)


def _available(compiler: str | None, folder: Path) -> set[str]:
    available = {"wall clock"} if compiler else set()
    probe = folder / "probe"
    probe.mkdir()
    if disks.mount_small(probe):
        disks.unmount(probe)
        available.add("small disk")
    return available


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.chaos.main", description=__doc__.split("\n")[0])
    parser.add_argument("--faults", type=int, default=300, metavar="N")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--stages", type=int, default=LANES, metavar="N", help="hives side by side, each with its own")
    parser.add_argument("--only", metavar="NAME;...", help="faults whose names begin so")
    parser.add_argument("--slow", type=float, default=float("inf"), metavar="SECONDS", help="tell the events of slower")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--list", action="store_true", help="print the faults and what each attacks")
    return parser.parse_args()


def main() -> None:
    options = _options()
    if options.list:
        for fault in FAULTS.values():
            print(f"{fault.name}: {fault.attacks}")
        return
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix="rbee-chaos-"))
    compiler = shutil.which("cc")
    available = _available(compiler, folder)
    if "small disk" not in available:
        shutil.rmtree(folder)
        disks.enter_namespace(["-m", "tests.chaos.main", *sys.argv[1:]])
        folder.mkdir()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the hives under test are ended, too
    faults = chosen(options.only, available)
    ledger = Ledger(faults, partial(print, flush=True), options.slow)
    lanes = []
    for number in range(options.stages):
        make_stage = _stages(number, options.stages, compiler, "small disk" in available)
        share = options.faults // options.stages + (number < options.faults % options.stages)
        lanes.append(Lane(str(number + 1), seed_of(seed, number), share, folder, make_stage, ledger))
    print(f"seed {seed}" + "".join(f"; alone: --stages 1 --seed {one.seed}" for one in lanes[1:]), flush=True)
    began = time.monotonic()
    try:
        _run(lanes)
    finally:
        if not ledger.problems:
            shutil.rmtree(folder, ignore_errors=True)
    _report(ledger, seed, options.faults, time.monotonic() - began, options.json)
    if ledger.problems:
        sys.exit(1)


def _stages(lane: int, lanes: int, compiler: str | None, small_disk: bool) -> MakeStage:
    def make_stage(folder: Path, rng: random.Random) -> Stage:
        return Stage(folder, rng, free_ports(random.Random(), lane, lanes), compiler=compiler, small_disk=small_disk)

    return make_stage


def _run(lanes: list[Lane]) -> None:
    """All of them at once. Whatever ends this leaves none of their hives behind."""
    threads = [threading.Thread(target=one.run, daemon=True) for one in lanes]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for one in lanes:
            one.abandon()
        for thread in threads:
            thread.join(BREAK_OFF_TIMEOUT)
        for one in lanes:  # what it was about to start when it was broken off
            one.abandon()
    for one in lanes:
        if one.error is not None:
            raise one.error


def _report(ledger: Ledger, seed: int, count: int, seconds: float, file: Path | None) -> None:
    rows = list(ledger.rows.values())
    answered = sum(row.answered for row in rows)
    print(f"\n{table.markdown(rows)}\n")
    print(f"{count} faults, seed {seed}, {seconds:.0f} s on {os.cpu_count()} cores; {answered} requests answered.")
    for problem in ledger.problems:
        print(f"VIOLATION {problem}")
    if file is not None:
        value = {"seed": seed, "faults": count, "seconds": seconds, "answered": answered}
        file.write_text(json.dumps({**value, **as_json(ledger)}))


if __name__ == "__main__":
    main()
