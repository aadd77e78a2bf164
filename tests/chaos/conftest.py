"""One stage for the tests of a module; a test that fails leaves a new one to the next."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.catalog import FAULTS
from tests.chaos.stage import Settled, Stage, free_ports


class Stages:
    """Makes a stage when one is asked for, and keeps it as long as nothing went wrong on it."""

    def __init__(self, make_folder: Callable[[str], Path]) -> None:
        self._make_folder = make_folder
        self._stage: Stage | None = None

    def get(self) -> Stage:
        if self._stage is None:
            rng = random.Random(1)
            self._stage = Stage(
                self._make_folder("stage"), rng, free_ports(random.Random()), compiler=shutil.which("cc")
            )
            self._stage.open()
        return self._stage

    def spoil(self) -> None:
        if self._stage is not None:
            self._stage.abandon()
            self._stage = None

    def close(self) -> list[str]:
        left = [] if self._stage is None else self._stage.close()
        self.spoil()
        return left


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    kept = Stages(tmp_path_factory.mktemp)
    try:
        yield kept
        assert kept.close() == []
    finally:
        kept.spoil()


@pytest.fixture
def survives(stages: Stages) -> Callable[[str], Settled]:
    """Injects the fault of that name, and fails unless all invariants hold afterwards."""

    def inject(name: str) -> Settled:
        stage = stages.get()
        fine = False
        try:
            stage.wait_busy()
            FAULTS[name].inject(stage)
            settled = stage.settle()
            assert settled.violations == []
            assert settled.judgement.failed == []
            fine = True
        finally:
            if not fine:
                stages.spoil()
        return settled

    return inject
