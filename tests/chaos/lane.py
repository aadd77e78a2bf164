"""Lanes run side by side, each with faults and stages of its own; one ledger takes down what came of all."""

import contextlib
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from http.client import HTTPException
from pathlib import Path
from typing import Any

from tests.chaos import table
from tests.chaos.catalog import Fault
from tests.chaos.stage import Settled, Stage
from tests.chaos.story import Step

FAULTS_A_STAGE = 50
"""After so many the hive, its state directory and all its workers are replaced."""

MakeStage = Callable[[Path, random.Random], Stage]


class Ledger:
    """What came of each of *faults*; *say* tells it at once, with the events where it took more than *slow* seconds."""

    def __init__(self, faults: list[Fault], say: Callable[[str], None], slow: float = float("inf")) -> None:
        self.faults = faults
        self._say = say
        self.rows = {fault.name: table.Row(fault.name) for fault in faults}
        self.slow = slow
        self.history: list[str] = []
        self.problems: list[str] = []
        self._lock = threading.Lock()

    def count(self, name: str, settled: Settled) -> None:
        with self._lock:
            row = self.rows[name]
            row.injected += 1
            row.seconds.append(settled.seconds)
            row.answered += settled.judgement.answered
            row.lost += len(settled.judgement.lost)
            row.failed += len(settled.judgement.failed)
            row.violations += len(settled.violations)

    def count_violation(self, name: str) -> None:
        """Of a fault that never came to its end."""
        with self._lock:
            self.rows[name].injected += 1
            self.rows[name].violations += 1

    def tell(self, *lines: str) -> None:
        with self._lock:
            self.history += lines
            self._say("\n".join(lines))

    def complain(self, where: str, problems: list[str]) -> int:
        """Note *problems*; returns a number for this complaint."""
        with self._lock:
            self.problems += [f"{where}: {problem}" for problem in problems]
            return len(self.problems)


class Lane:
    """*count* faults by *seed* alone, into stages that *make_stage* builds in empty folders in *folder*."""

    def __init__(self, name: str, seed: int, count: int, folder: Path, make_stage: MakeStage, ledger: Ledger) -> None:
        self.name, self.seed = name, seed
        self._count = count
        self._folder = folder
        self._make_stage = make_stage
        self._ledger = ledger
        self._done = 0
        self._stages = 0
        self._stage: Stage | None = None
        self._ended = False
        self.error: BaseException | None = None
        """What ended ``run``, where that was no violation but a mistake of the runner's."""

    def deck(self) -> Iterator[Fault]:
        """Every fault as often as its weight says, shuffled, again and again."""
        rng = random.Random(f"{self.seed}/deck")
        while True:
            cards = [fault for fault in self._ledger.faults for _ in range(fault.weight)]
            rng.shuffle(cards)
            yield from cards

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.error = error

    def abandon(self) -> None:
        """Leave no process and no folder; from another thread, while ``run`` may still be at work."""
        self._ended = True
        if self._stage is not None:
            self._stage.abandon()
            self._stage.remove()

    def _run(self) -> None:
        deck = self.deck()
        while self._done < self._count and not self._ended:
            self._stages += 1
            folder = self._folder / f"lane{self.name}-stage{self._stages}"
            folder.mkdir()
            stage = self._stage = self._make_stage(folder, random.Random(f"{self.seed}/stage{self._stages}"))
            try:
                if self._ended:  # it was broken off before there was a stage to abandon
                    return
                stage.open()
                self._play(stage, deck)
            finally:
                stage.abandon()
                stage.remove()

    def _play(self, stage: Stage, deck: Iterator[Fault]) -> None:
        """Until the stage has had its faults, or a violation ends it."""
        for _ in range(min(FAULTS_A_STAGE, self._count - self._done)):
            self._done += 1
            fault = next(deck)
            problems = self._inject(stage, fault)
            if problems or self._ended:
                self._keep(stage, fault.name, problems)
                return
        if left := stage.close():
            self._keep(stage, "end of the hive", left)

    def _inject(self, stage: Stage, fault: Fault) -> list[str]:
        # By its number alone: what an earlier fault has drawn may have hung on time.
        stage.rng.seed(f"{self.seed}/{self._done}")
        began, mark = time.monotonic(), len(stage.story.steps)
        try:
            stage.wait_busy()
            fault.inject(stage)
            settled = stage.settle()
        except (AssertionError, OSError, HTTPException, ValueError, KeyError) as error:
            # Whatever it was, the hive did not do what is promised, or did not answer.
            self._ledger.count_violation(fault.name)
            return [f"{type(error).__name__}: {error}"]
        self._ledger.count(fault.name, settled)
        line = f"{self.name}.{self._done:03} {fault.name}: settled after {settled.seconds:.2f} s"
        lines = [f"{line}, {time.monotonic() - began:.1f} s in all, {len(settled.judgement.lost)} lost"]
        if settled.seconds > self._ledger.slow:
            lines += told(stage.story.steps[mark:], stage.injected_at)
        self._ledger.tell(*lines)
        return [*settled.violations, *(f"failed otherwise: {what}" for what in settled.judgement.failed)]

    def _keep(self, stage: Stage, name: str, problems: list[str]) -> None:
        if self._ended:
            return  # it was broken off: what does not hold is no wonder
        number = self._ledger.complain(f"{self.name}.{self._done:03} {name}", problems)
        kept = self._folder / f"kept{number}"
        with contextlib.suppress(shutil.Error):  # the hive is still at work in it: what is gone by now is not kept
            shutil.copytree(stage.disk, kept, ignore=shutil.ignore_patterns("*.sock"), dirs_exist_ok=True)
        self._ledger.tell(
            f"VIOLATION after '{name}' ({self.name}.{self._done:03}, seed {self.seed}); log and state: {kept}",
            *(f"    {problem}" for problem in problems),
            *told(stage.story.steps[-12:], stage.injected_at),
        )


def told(steps: list[Step], since: float) -> list[str]:
    """One line a step, each with its time after *since*."""
    return [
        f"    {step.seen_at - since:+7.3f} s {step.worker_id}:{step.incarnation} {step.event} "
        f"{step.before} -> {step.after}: {step.message}"
        for step in steps
    ]


def seed_of(seed: int, number: int) -> int:
    """The seed of lane *number*, from 0: the first has the run's own, so that any lane can be played alone."""
    return seed if number == 0 else random.Random(f"{seed}/{number}").randrange(2**31)


def as_json(ledger: Ledger) -> dict[str, Any]:
    rows = [asdict(row) for row in ledger.rows.values()]
    return {"history": ledger.history, "problems": ledger.problems, "rows": rows}
