"""What is left to say when the keeper itself fails."""

import sys
from pathlib import Path

import pytest

from rbee.worker import main as entry
from rbee.worker.keeper import Keeper


def test_an_exit_file_that_cannot_be_written_does_not_hide_why_the_keeper_failed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(_: Keeper) -> None:
        raise RuntimeError("the first error")

    monkeypatch.setattr(Keeper, "run", fail)
    given = ["--worker-id", "w", "--model-ref", "synthetic:x", "--engine", "synthetic"]
    monkeypatch.setattr(sys, "argv", ["worker", *given, "--exit-file", str(tmp_path / "missing" / "exit.json")])
    assert entry.main() == 1
    said = capfd.readouterr().err
    assert "the first error" in said
    assert "Cannot write the exit file" in said
