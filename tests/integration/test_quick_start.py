"""The original's quick start, command for command: hive on 9200, a worker by hand on 8081, metrics, and its death."""

import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.hives import Hive, clean_environ, example_model, wait_for

PORT = 9200


@pytest.fixture
def quick_start_hive(tmp_path):
    """Settings of the original but for the times: 60 seconds of silence are 3 here."""
    hive = Hive(tmp_path / "state", {"heartbeat.interval": "1s", "heartbeat.stale_after": "3s"}, port=PORT)
    try:
        yield hive.start()
    finally:
        hive.end()


def test_the_quick_start_works_to_the_letter(quick_start_hive, tmp_path):
    hive = quick_start_hive
    program = shutil.which("llm-worker-rbee", path=str(Path(sys.executable).parent))
    assert program, "llm-worker-rbee is not installed beside this Python"
    command = (
        f"{program} --worker-id test-worker --model {example_model()} --model-ref hf:test/model "
        "--backend cpu --device 0 --port 8081 --callback-url http://localhost:9200"
    )
    log = tmp_path / "worker.log"
    with log.open("wb") as output:
        worker = subprocess.Popen(
            command.split(), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=clean_environ()
        )
    try:
        record = hive.wait_state("test-worker", "idle")
        assert record["external"]
        assert (record["model_ref"], record["pid"]) == ("hf:test/model", worker.pid)
        wait_for(lambda: "Heartbeat sent successfully" in log.read_text(), "the worker says that it beats")
        wait_for(lambda: hive.log("Received heartbeat"), "the hive says that it heard it")

        page = urllib.request.urlopen("http://localhost:9200/metrics", timeout=30).read().decode()
        assert 'rbee_hive_workers_total{backend="cpu",device="0",state="idle"} 1.0' in page
        assert "rbee_hive_workers_stale_total 0.0" in page

        os.kill(worker.pid, signal.SIGKILL)
        worker.wait(30)
        gone = hive.wait_state("test-worker", "failed", "gone")
        assert gone["state"] == "gone" or "removed when its heartbeat is overdue" in gone["message"]
        hive.wait_state("test-worker", "gone")
        assert [line["worker_id"] for line in hive.log("Worker is stale (no heartbeat in 3s)")] == ["test-worker"]
        assert hive.metric("rbee_hive_workers_stale_total") == 1
        assert hive.get("/v1/workers").json == {"workers": []}
    finally:
        if worker.poll() is None:
            worker.kill()
            worker.wait()


def test_a_worker_by_hand_that_is_ended_politely_is_removed_too(start_hive, tmp_path):
    hive = start_hive()
    argv = [sys.executable, "-m", "rbee.worker", "--worker-id", "by-hand", "--model-ref", "synthetic:x"]
    argv += ["--engine", "synthetic", "--backend", "cpu", "--device", "0", "--port", "8081"]
    argv += ["--callback-url", f"http://127.0.0.1:{hive.port}"]
    with (tmp_path / "worker.log").open("wb") as output:
        worker = subprocess.Popen(argv, stdout=output, stderr=output, env=clean_environ())
    try:
        hive.wait_state("by-hand", "idle")
        answer = hive.post("/v1/chat/completions", {"model": "by-hand", "messages": [], "max_tokens": 3})
        assert answer.headers["x-rbee-worker"] == "by-hand"
        assert hive.call("DELETE", "/v1/workers/by-hand").status == 202
        hive.wait_state("by-hand", "gone")
        # Only removed: its process is its owner's, and announces itself again with its next beat.
        assert worker.poll() is None
        hive.wait_state("by-hand", "idle")
        worker.terminate()
        assert worker.wait(30) == 0
        hive.wait_state("by-hand", "gone")
    finally:
        if worker.poll() is None:
            worker.kill()
            worker.wait()
