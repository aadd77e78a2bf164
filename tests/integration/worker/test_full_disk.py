"""A worker whose log and exit file are on a full disk serves, beats and ends as any other."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.worker.real import StartWorker, Worker, ask
from tests.integration.worker.stub_hive import StubHive
from tests.small_disk import seen_by, with_small_disk

CHAT = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}
FILL = 'cd "$0" && exec >> log 2>&1; cat /dev/zero > ballast; exec "$@"'
StartOnFullDisk = Callable[..., Worker]


@pytest.fixture
def start_on_full_disk(hive: StubHive, start_worker: StartWorker, tmp_path: Path) -> StartOnFullDisk:
    disk = tmp_path / "disk"
    disk.mkdir()
    prefix = [*with_small_disk(disk), "sh", "-c", FILL, str(disk)]

    def start(*arguments: str, **options: str) -> Worker:
        own = ("--exit-file", str(disk / "exit.json"), "--heartbeat-interval", "0.2")
        worker = start_worker(hive.url, *own, *arguments, prefix=prefix, **options)
        return worker

    return start


def assert_serves_beats_and_ends(hive: StubHive, worker: Worker, disk: Path) -> None:
    ready = hive.wait_state("ready")
    assert ask(ready["url"], "/v1/chat/completions", CHAT)[0] == 200
    hive.wait_beat(after=len(hive.calls), health_status="healthy")
    there = seen_by(worker.process.pid, disk)
    assert sorted(file.name for file in there.iterdir()) == ["ballast", "log"]
    assert (there / "log").stat().st_size == 0  # else the disk is not full, and this test shows nothing
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait_end() == 0


def test_a_synthetic_worker_serves_beats_and_ends(
    hive: StubHive, start_on_full_disk: StartOnFullDisk, tmp_path: Path
) -> None:
    assert_serves_beats_and_ends(hive, start_on_full_disk(), tmp_path / "disk")


def test_a_real_model_serves_and_its_worker_beats_and_ends(
    hive: StubHive, start_on_full_disk: StartOnFullDisk, example_model: str, tmp_path: Path
) -> None:
    worker = start_on_full_disk("--model", example_model, "--ctx-size", "512", engine="llama-cpp")
    assert_serves_beats_and_ends(hive, worker, tmp_path / "disk")


def test_a_crash_is_told_with_the_status_that_the_engine_chose(
    hive: StubHive, start_on_full_disk: StartOnFullDisk
) -> None:
    """Python adds a status of its own, 120, for words that it could not write."""
    worker = start_on_full_disk("--", "--crash-after", "0.1")
    assert worker.wait_end() == 1
    assert hive.wait_state("failed")["reason"] == "the engine ended with exit code 1"


def test_a_model_that_is_not_there_is_a_failed_load(hive: StubHive, start_on_full_disk: StartOnFullDisk) -> None:
    worker = start_on_full_disk("--model", "/no/such/model.gguf", engine="llama-cpp")
    assert worker.wait_end() == 1
    assert hive.wait_state("failed")["reason"] == "the engine ended with exit code 1 while it loaded"


def test_a_program_that_is_not_there_keeps_its_own_status(hive: StubHive, start_on_full_disk: StartOnFullDisk) -> None:
    command = '["/no/such/program"]'
    worker = start_on_full_disk("--model", "m", engine="command", RBEE_ENGINE_COMMAND=command)
    assert worker.wait_end() == 1
    assert hive.wait_state("failed")["reason"] == "the engine ended with exit code 127 while it loaded"
