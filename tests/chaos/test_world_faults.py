"""Each fault of disk and clock, once; the invariants of invariants.py are checked after each."""

import subprocess
import sys
from pathlib import Path

import pytest

import tests.chaos.world_faults  # noqa: F401 - enters its faults into the list
from tests.hives import clean_environ
from tests.tools import need_tool

ROOT = Path(__file__).parent.parent.parent


def test_a_full_disk_ends_neither_the_hive_nor_those_that_serve():
    """By the runner: it enters a namespace of its own where it may not mount."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.chaos.main", "--only", "disk full", "--faults", "1", "--seed", "1"],
        cwd=ROOT,
        env=clean_environ(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    if "Left out" in run.stdout:
        pytest.skip("a small disk cannot be mounted here")
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("way", ["ahead", "back"])
def test_no_deadline_hangs_on_the_wall_clock(survives, way):
    need_tool("cc")
    survives(f"wall clock jumps an hour {way}")


def test_nobody_is_ended_because_the_hive_has_no_descriptor_left_to_hear_him_with(survives):
    survives("descriptors exhausted")


def test_whoever_holds_the_database_holds_up_no_beat(survives):
    settled = survives("database locked by another for longer than stale_after")
    assert settled.judgement.lost == []
