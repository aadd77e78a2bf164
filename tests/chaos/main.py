"""Faults at random into a real hive that serves all the time, one after the other; what holds, and what came of each.

Exit status 1 when anything that is promised did not hold: then the seed, the history and the hive's log are told.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

from tests.chaos import disks, table
from tests.chaos import hive_faults as _hive_faults
from tests.chaos import load_faults as _load_faults
from tests.chaos import worker_faults as _worker_faults
from tests.chaos import world_faults as _world_faults
from tests.chaos.catalog import FAULTS, Fault
from tests.chaos.stage import Settled, Stage, free_ports

_BY_IMPORT = (_hive_faults, _load_faults, _worker_faults, _world_faults)
"""Their functions enter themselves into FAULTS."""

FAULTS_A_STAGE = 50
"""After so many the hive, its state directory and all its workers are replaced."""


class Run:
    """One run: *deck* says which fault is next, *folder* holds all that it makes."""

    def __init__(self, seed: int, faults: list[Fault], folder: Path, compiler: str | None, small_disk: bool) -> None:
        self.seed = seed
        self._faults = faults
        self._folder = folder
        self._compiler = compiler
        self._small_disk = small_disk
        self._rng = random.Random(seed)
        self._stages = 0
        self.rows = {fault.name: table.Row(fault.name) for fault in faults}
        self.history: list[str] = []
        self.problems: list[str] = []

    def deck(self) -> Iterator[Fault]:
        """Every fault as often as its weight says, shuffled, again and again."""
        rng = random.Random(f"{self.seed}/deck")
        while True:
            cards = [fault for fault in self._faults for _ in range(fault.weight)]
            rng.shuffle(cards)
            yield from cards

    def run(self, count: int) -> None:
        deck = self.deck()
        done = 0
        while done < count:
            stage = self._open_stage()
            many = min(FAULTS_A_STAGE, count - done)
            try:
                done += self._play(stage, deck, many)
            finally:
                stage.abandon()
                stage.remove()

    def _open_stage(self) -> Stage:
        self._stages += 1
        folder = self._folder / f"stage{self._stages}"
        folder.mkdir()
        stage = Stage(
            folder, self._rng, free_ports(random.Random()), compiler=self._compiler, small_disk=self._small_disk
        )
        try:
            return stage.open()
        except BaseException:
            stage.abandon()
            stage.remove()
            raise

    def _play(self, stage: Stage, deck: Iterator[Fault], many: int) -> int:
        """Inject up to *many*; fewer when a violation ends the stage. Returns how many."""
        for number in range(1, many + 1):
            fault = next(deck)
            problems = self._inject(stage, fault)
            if problems:
                self._keep(stage, fault, problems)
                return number
        if left := stage.close():
            self._keep(stage, None, left)
        return many

    def _inject(self, stage: Stage, fault: Fault) -> list[str]:
        row = self.rows[fault.name]
        row.injected += 1
        began = time.monotonic()
        try:
            stage.wait_busy()
            fault.inject(stage)
            settled = stage.settle()
        except (AssertionError, OSError, HTTPException, ValueError, KeyError) as error:
            # Whatever it was, the hive did not do what is promised, or did not answer.
            row.violations += 1
            return [f"{type(error).__name__}: {error}"]
        self._count(row, settled)
        line = f"{len(self.history) + 1:4} {fault.name}: settled after {settled.seconds:.2f} s"
        self._tell(f"{line}, {time.monotonic() - began:.1f} s in all, {len(settled.judgement.lost)} lost")
        return [*settled.violations, *(f"failed otherwise: {what}" for what in settled.judgement.failed)]

    def _count(self, row: table.Row, settled: Settled) -> None:
        row.seconds.append(settled.seconds)
        row.answered += settled.judgement.answered
        row.lost += len(settled.judgement.lost)
        row.failed += len(settled.judgement.failed)
        row.violations += len(settled.violations)

    def _tell(self, line: str) -> None:
        self.history.append(line)
        print(line, flush=True)

    def _keep(self, stage: Stage, fault: Fault | None, problems: list[str]) -> None:
        name = fault.name if fault else "end of the hive"
        kept = self._folder / f"kept{len(self.problems)}"
        shutil.copytree(stage.disk, kept, ignore=shutil.ignore_patterns("*.sock"), dirs_exist_ok=True)
        self._tell(f"VIOLATION after '{name}' (seed {self.seed}); log and state: {kept}")
        for problem in problems:
            self._tell(f"    {problem}")
        for step in stage.story.steps[-12:]:
            self._tell(f"    last events: {step.worker_id} {step.event} {step.before} -> {step.after}: {step.message}")
        self.problems += [f"{name}: {problem}" for problem in problems]


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


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.chaos.main", description=__doc__.split("\n")[0])
    parser.add_argument("--faults", type=int, default=300, metavar="N")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", metavar="NAME;...", help="faults whose names begin so")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--list", action="store_true", help="print the faults and what each attacks")
    options = parser.parse_args()
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the hive under test is ended, too
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    run = Run(seed, chosen(options.only, available), folder, compiler, "small disk" in available)
    run.run(options.faults)
    report(run, options.faults, time.monotonic() - began, options.json)
    if run.problems:
        sys.exit(1)
    shutil.rmtree(folder, ignore_errors=True)


def report(run: Run, count: int, seconds: float, file: Path | None) -> None:
    rows = list(run.rows.values())
    answered = sum(row.answered for row in rows)
    print(
        f"\n{table.markdown(rows)}\n\n{count} faults, seed {run.seed}, {seconds:.0f} s; {answered} requests answered."
    )
    for problem in run.problems:
        print(f"VIOLATION {problem}")
    if file is not None:
        value = {"seed": run.seed, "faults": count, "seconds": seconds, "answered": answered, "history": run.history}
        file.write_text(json.dumps({**value, "rows": [row.as_json() for row in rows], "problems": run.problems}))


if __name__ == "__main__":
    main()
