"""Engines of the settings file, and ports that others hold, under a real hive."""

import json
import socket
import sys

import pytest

from tests.hives import QUICK, example_model, running_hive

SERVER = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({"ok": True}, 200 if self.path == "/ping" else 404)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers["Authorization"] == "Bearer " + os.environ["VLLM_API_KEY"]
        self.answer({"model": asked["model"], "key": key, "argv": sys.argv[2:]}, 200)

    def answer(self, value, status):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def configured(tmp_path):
    command = json.dumps([sys.executable, "-c", SERVER, "{port}", "{model}", "{names}"])
    config = tmp_path / "rbee-hive.toml"
    config.write_text(
        f'[engine.mine]\ncommand = {command}\nhealth_path = "/ping"\n'
        '[model.small]\nref = "example"\nengine = "mine"\nalias = "tiny"\nslots = 3\n'
    )
    with running_hive(tmp_path / "state", QUICK, config=config) as hive:
        yield hive
    assert hive.processes() == []


def test_any_openai_compatible_server_is_an_engine(configured):
    worker = configured.ready("example", engine="mine", alias="chat")
    assert (worker["engine"], worker["slots"]) == ("mine", 256)
    answer = configured.post("/v1/chat/completions", {"model": "chat", "messages": []})
    assert answer.json["key"]
    assert answer.json["argv"] == [str(example_model()), "chat", worker["model_ref"], worker["worker_id"]]


def test_a_request_may_not_bring_arguments_for_a_command(configured):
    answer = configured.post("/v1/workers/spawn", {"model_ref": "example", "engine": "mine", "engine_args": ["--x"]})
    assert (answer.status, answer.code) == (422, "invalid_field")


def test_a_model_of_the_settings_file_is_spawned_by_its_name(configured):
    worker = configured.ready("small")
    assert (worker["engine"], worker["alias"], worker["slots"]) == ("mine", "tiny", 3)


def test_a_worker_port_that_is_taken_is_passed_over(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        first = taken.getsockname()[1]
        ports = {**QUICK, "workers.port_range": f"{first}-{min(first + 20, 65535)}"}
        with running_hive(tmp_path / "state", ports) as hive:
            worker = hive.ready()
            assert first < int(worker["url"].rpartition(":")[2]) <= first + 20
            answer = hive.post("/v1/chat/completions", {"model": "synthetic:x", "messages": [], "max_tokens": 1})
            assert answer.status == 200


def test_a_range_without_a_free_port_is_told(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with running_hive(tmp_path / "state", {**QUICK, "workers.port_range": f"{port}-{port}"}) as hive:
            answer = hive.post("/v1/workers/spawn", {"model_ref": "synthetic:x"})
            assert (answer.status, answer.code) == (503, "no_port_left")
            assert "workers.port_range" in answer.json["error"]["message"]


def test_long_arguments_reach_the_worker_however_much_they_are_escaped(hive):
    """As ASCII this text would be larger than the worker takes."""
    text = "\N{LATIN SMALL LETTER E WITH ACUTE}" * 30_000
    worker = hive.wait_state(hive.spawn(engine_args=["--fail-load", text], restart="never"), "failed")
    assert text[:100] in worker["last_exit"]["message"]


def test_arguments_that_no_worker_could_be_told_are_refused(hive):
    text = "\n" * 40_000
    answer = hive.post("/v1/workers/spawn", {"model_ref": "synthetic:x", "engine_args": ["--fail-load", text]})
    assert (answer.status, answer.json["error"]["details"]["field"]) == (422, "engine_args")
    assert "65536" in answer.json["error"]["message"]


def test_a_python_alone_is_the_engine_of_llama_cpp_run_by_it(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho run >> {tmp_path}/runs\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    config = tmp_path / "rbee-hive.toml"
    config.write_text(f'[engine.other]\npython = "{python}"\n')
    with running_hive(tmp_path / "state", QUICK, config=config) as hive:
        worker = hive.ready("example", engine="other", engine_args=["--threads", "1"])
        assert (worker["engine"], worker["slots"]) == ("other", 4)
        # Asked what it can use, and run.
        assert len((tmp_path / "runs").read_text().splitlines()) == 2
        refused = hive.post("/v1/workers/spawn", {"model_ref": "example", "engine": "other", "backend": "cuda"})
        assert (refused.status, refused.code) == (422, "invalid_field")
        assert "the engine 'other' reports no CUDA device" in refused.json["error"]["message"]
