"""The launcher between keeper and engine."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rbee.worker import launcher
from tests.integration.worker.real import DEADLINE, alive, wait_until

LAUNCHER = launcher.__file__
SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(3600)"]


class Leased:
    """An engine behind a launcher that stays, as outside Linux."""

    def __init__(self, *argv: str) -> None:
        lease, self.keeper_end = os.pipe()
        command = [sys.executable, "-I", "-S", LAUNCHER, str(os.getpid()), str(lease), "--", *argv]
        self.process = subprocess.Popen(command, pass_fds=[lease], stdout=subprocess.PIPE)
        os.close(lease)
        assert self.process.stdout is not None
        self.output = self.process.stdout

    def engine(self) -> int:
        """The pid of the engine, which is running."""
        assert self.output.readline() == b"up\n"
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def close(self) -> None:
        os.close(self.keeper_end)
        self.process.wait(DEADLINE)
        self.output.close()


@pytest.fixture
def leased() -> Iterator[Leased]:
    started = Leased(*SLEEPER)
    yield started
    started.close()


def test_the_end_of_the_lease_ends_the_engine() -> None:
    leased = Leased(*SLEEPER)
    engine = leased.engine()
    leased.close()
    assert not alive(engine)
    assert leased.process.returncode == -signal.SIGKILL


def test_a_signal_to_a_staying_launcher_reaches_its_engine(leased: Leased) -> None:
    engine = leased.engine()
    leased.process.send_signal(signal.SIGTERM)
    assert leased.process.wait(DEADLINE) == -signal.SIGTERM
    assert not alive(engine)


def test_a_staying_launcher_ends_with_its_engines_exit_code() -> None:
    leased = Leased(sys.executable, "-c", "raise SystemExit(7)")
    assert leased.process.wait(DEADLINE) == 7
    leased.close()


def test_a_keeper_that_died_before_the_start_gets_no_engine(tmp_path: Path) -> None:
    """Whoever starts the launcher is not the keeper that it is told of."""
    mark = tmp_path / "started"
    command = [sys.executable, "-I", "-S", LAUNCHER, "1", "-", "--", "touch", str(mark)]
    ended = subprocess.run(command, capture_output=True, timeout=DEADLINE, check=False)
    assert ended.returncode == 1
    assert b"the keeper died before its engine was started" in ended.stderr
    assert not mark.exists()


def test_the_engine_dies_with_whoever_launched_it() -> None:
    script = f"""
import os, subprocess, sys
command = [sys.executable, "-I", "-S", {LAUNCHER!r}, str(os.getpid()), "-", "--", *{SLEEPER!r}]
process = subprocess.Popen(command)
print(process.pid, flush=True)
process.wait()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as keeper:
        assert keeper.stdout is not None
        engine = int(keeper.stdout.readline())
        assert keeper.stdout.readline() == b"up\n"
        keeper.kill()
    wait_until(lambda: not alive(engine), "the end of the engine")
