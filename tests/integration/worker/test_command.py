"""The engine that is any server: its template, its key, its children."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.worker.real import ENGINE_KEY, StartWorker, alive, ask, wait_until
from tests.integration.worker.stub_hive import StubHive

SERVER = """
import json, os, signal, subprocess, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

port, mode, names = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
if mode == "metrics, deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        text, status = "{}", 200
        if self.path == "/metrics":
            busy = 0 if os.path.exists(os.path.join(os.environ["TMPDIR"], "idle")) else 1
            text = f'vllm:num_requests_running{{engine="0"}} {busy}\\n'
            status = 200 if mode.startswith("metrics") else 404
        elif self.path == "/ask":
            text = json.dumps({"names": names, "child": child.pid, "key": os.environ.get("VLLM_API_KEY")})
        elif self.path != "/ping":
            status = 404
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args):
        pass

ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def template(mode: str) -> str:
    return json.dumps([sys.executable, "-c", SERVER, "{port}", mode, "{names}", "all={names}", "{model}"])


def started(start_worker: StartWorker, hive: StubHive, tmp_path: Path, mode: str, *arguments: str) -> Any:
    environment = {
        "RBEE_ENGINE_COMMAND": template(mode),
        "RBEE_ENGINE_HEALTH_PATH": "/ping",
        "TMPDIR": str(tmp_path),
    }
    worker = start_worker(
        hive.url, "--model", "/models/{port}.gguf", "--alias", "small", *arguments, engine="command", **environment
    )
    return worker, hive.wait_state("ready")


def test_the_template_is_filled_and_the_key_given(hive: StubHive, start_worker: StartWorker, tmp_path: Path) -> None:
    _, ready = started(start_worker, hive, tmp_path, "plain")
    _, answer = ask(ready["url"], "/ask")
    assert answer["names"] == ["small", "synthetic:test", "w0", "all=small,synthetic:test,w0", "/models/{port}.gguf"]
    assert answer["key"] == ENGINE_KEY
    assert ready["slots_total"] == 256


def test_its_children_end_with_it_even_in_a_session_of_their_own(
    hive: StubHive, start_worker: StartWorker, tmp_path: Path
) -> None:
    worker, ready = started(start_worker, hive, tmp_path, "plain")
    child = ask(ready["url"], "/ask")[1]["child"]
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait_end() == 0
    assert not alive(child)


def test_its_children_end_with_it_when_it_crashes(hive: StubHive, start_worker: StartWorker, tmp_path: Path) -> None:
    worker, ready = started(start_worker, hive, tmp_path, "plain")
    child = ask(ready["url"], "/ask")[1]["child"]
    os.kill(ready["engine_pid"], signal.SIGKILL)
    assert worker.wait_end() == 1
    assert not alive(child)


def test_a_stop_waits_for_what_its_metrics_tell(hive: StubHive, start_worker: StartWorker, tmp_path: Path) -> None:
    worker, _ = started(start_worker, hive, tmp_path, "metrics", "--heartbeat-interval", "0.1")
    hive.wait_for(lambda call: call.body.get("telemetry", {}).get("slots_busy") == 1)
    worker.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "Draining" in worker.log, "the drain")
    hive.wait_beat(after=len(hive.calls) + 2)
    assert worker.process.poll() is None
    (tmp_path / "idle").touch()
    assert worker.wait_end() == 0


def test_an_end_keeps_within_its_time_whatever_the_engine_does(
    hive: StubHive, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Requests that never end, and an engine that does not hear: both get their part of the two seconds."""
    arguments = ("--drain-timeout", "3600", "--end-timeout", "2")
    worker, ready = started(start_worker, hive, tmp_path, "metrics, deaf", *arguments)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait_end() == 0
    assert not alive(ready["engine_pid"])
    assert worker.ended()["message"] == "stopped with requests still running"
    assert "timeout=0.6" in worker.log


def test_without_metrics_a_stop_waits_for_nothing(hive: StubHive, start_worker: StartWorker, tmp_path: Path) -> None:
    worker, _ = started(start_worker, hive, tmp_path, "plain", "--drain-timeout", "3600")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait_end() == 0
    assert worker.ended()["message"] == "stopped"


@pytest.mark.parametrize("program", ["no-such-program", "/etc/passwd"])
def test_a_program_that_cannot_run_is_named(hive: StubHive, start_worker: StartWorker, program: str) -> None:
    environment = {"RBEE_ENGINE_COMMAND": json.dumps([program])}
    worker = start_worker(hive.url, "--model", "m", engine="command", **environment)
    assert worker.wait_end() == 1
    assert f"cannot start the engine '{program}'" in hive.wait_state("failed")["reason"]
