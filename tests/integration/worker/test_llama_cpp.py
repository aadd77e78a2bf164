"""The default engine with the real model."""

import json
import os
import signal
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.integration.worker.real import DEADLINE, ENGINE_KEY, StartWorker, Worker, alive, ask, free_port, wait_until
from tests.integration.worker.stub_hive import StubHive

CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Count from one to twenty."}],
    "max_tokens": 8,
    "temperature": 0,
}
SMALL = ("--ctx-size", "512", "--slots", "2")


def test_a_whole_life_with_the_real_model(hive: StubHive, start_worker: StartWorker, example_model: str) -> None:
    worker = start_worker(
        *(hive.url, "--model", example_model, "--alias", "small", "--model-ref", "hf:test/model", *SMALL),
        engine="llama-cpp",
    )
    ready = hive.wait_state("ready")
    url = ready["url"]
    assert ask(url, "/health", key="")[0] == 200
    assert ask(url, "/v1/chat/completions", CHAT, key="wrong")[0] == 401
    for name in ("small", "hf:test/model", "w0"):
        status, answer = ask(url, "/v1/chat/completions", {**CHAT, "model": name})
        assert (status, answer["usage"]["completion_tokens"]) == (200, 8)
    _, slots = ask(url, "/slots")
    assert [slot["n_ctx"] for slot in slots] == [512, 512]

    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait_end() == 0
    assert not alive(ready["engine_pid"])


def test_a_stop_lets_a_real_stream_end_first(hive: StubHive, start_worker: StartWorker, example_model: str) -> None:
    worker = start_worker(hive.url, "--model", example_model, *SMALL, "--drain-timeout", "600", engine="llama-cpp")
    url = hive.wait_state("ready")["url"]
    body = json.dumps({**CHAT, "max_tokens": 60, "stream": True, "ignore_eos": True}).encode()
    headers = {"Authorization": f"Bearer {ENGINE_KEY}"}
    request = urllib.request.Request(url + "/v1/chat/completions", body, headers)
    with urllib.request.urlopen(request, timeout=DEADLINE) as stream:
        assert stream.readline().startswith(b"data: ")
        worker.process.send_signal(signal.SIGTERM)
        assert stream.read().rstrip().endswith(b"data: [DONE]")
    assert worker.wait_end() == 0
    assert worker.ended()["message"] == "stopped"


def test_the_death_of_a_real_engine_is_reported(hive: StubHive, start_worker: StartWorker, example_model: str) -> None:
    worker = start_worker(hive.url, "--model", example_model, *SMALL, engine="llama-cpp")
    os.kill(hive.wait_state("ready")["engine_pid"], signal.SIGSEGV)
    assert worker.wait_end() == 1
    assert "killed by SIGSEGV" in hive.wait_state("failed")["reason"]


def test_telemetry_of_the_real_engine(hive: StubHive, start_worker: StartWorker, example_model: str) -> None:
    start_worker(hive.url, "--model", example_model, *SMALL, "--heartbeat-interval", "0.2", engine="llama-cpp")
    ask(hive.wait_state("ready")["url"], "/v1/chat/completions", CHAT)
    beat = hive.wait_for(lambda call: call.body.get("telemetry", {}).get("generated_tokens_total") == 8).body
    telemetry = beat["telemetry"]
    assert telemetry["prompt_tokens_total"] > 8
    assert (telemetry["slots_busy"], telemetry["slots_total"]) == (0, 2)
    assert telemetry["rss_bytes"] > 50_000_000
    assert "requests_total" not in telemetry


class _Failures:
    """Model files that cannot be loaded, and what a person must read about each."""

    @staticmethod
    def truncated(path: Path, whole: str) -> str:
        with open(whole, "rb") as model:
            path.write_bytes(model.read(50_000_000))
        return "data is not within the file bounds, model is corrupted or incomplete"

    @staticmethod
    def text(path: Path, whole: str) -> str:
        path.write_text("hello, I am not a model")
        return "invalid magic characters: 'hell', expected 'GGUF'"

    @staticmethod
    def empty(path: Path, whole: str) -> str:
        path.write_bytes(b"")
        return "failed to read magic"

    @staticmethod
    def missing(path: Path, whole: str) -> str:
        return f"failed to open GGUF file '{path}' (No such file or directory)"


@pytest.mark.parametrize("failure", ["truncated", "text", "empty", "missing"])
def test_a_model_that_cannot_be_loaded_is_explained(
    hive: StubHive, start_worker: StartWorker, example_model: str, tmp_path: Path, failure: str
) -> None:
    path = tmp_path / "model.gguf"
    explanation = getattr(_Failures, failure)(path, example_model)
    worker = start_worker(hive.url, "--model", str(path), engine="llama-cpp")
    assert worker.wait_end() == 1
    assert explanation in hive.wait_state("failed")["reason"]
    assert explanation in worker.ended()["message"]
    assert "Traceback" not in worker.log


def test_a_python_without_xllamacpp_is_explained(hive: StubHive, start_worker: StartWorker, tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text('#!/bin/sh\nexec /usr/bin/env -i "RBEE_ENGINE_CONFIG=$RBEE_ENGINE_CONFIG" python3 -I -S "$@"\n')
    bare.chmod(0o755)
    worker = start_worker(hive.url, "--model", "/x.gguf", "--engine-python", str(bare), engine="llama-cpp")
    assert worker.wait_end() == 1
    assert "cannot import xllamacpp" in hive.wait_state("failed")["reason"]


def test_a_backend_that_the_build_does_not_have_never_runs_on_the_processor(
    hive: StubHive, start_worker: StartWorker, example_model: str
) -> None:
    worker = start_worker(hive.url, "--model", example_model, "--backend", "cuda", engine="llama-cpp")
    assert worker.wait_end() == 1
    assert "sees no GPU" in hive.wait_state("failed")["reason"]


@pytest.mark.parametrize(("devices", "outcome"), [("0,1", "serves"), ("0,1,2", "sees 2")])
def test_a_model_is_only_loaded_where_the_engine_sees_every_device_of_its_placement(
    hive: StubHive, start_worker: StartWorker, example_model: str, tmp_path: Path, devices: str, outcome: str
) -> None:
    """A build for two GPUs, as far as it can be had without any: the devices are added to what the real one reports."""
    folder = tmp_path / "added"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import xllamacpp\n"
        "kind = type(xllamacpp.get_device_info()[0]['type']).GGML_BACKEND_DEVICE_TYPE_GPU\n"
        "xllamacpp.get_device_info = lambda: [{'type': kind}, {'type': kind}]\n"
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    arguments = ("--model", example_model, "--backend", "cuda", "--devices", devices, "--engine-python", str(python))
    shares = ",".join(["0.25"] * len(devices.split(",")))
    worker = start_worker(hive.url, *arguments, "--tensor-split", shares, engine="llama-cpp")
    if outcome == "serves":
        hive.wait_state("ready")
    else:
        assert worker.wait_end() == 1
        assert outcome in hive.wait_state("failed")["reason"]


def test_a_port_lost_to_a_stranger_is_replaced(hive: StubHive, start_worker: StartWorker, example_model: str) -> None:
    thieves: list[HTTPServer] = []

    def steal(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if not thieves:
            address = ("127.0.0.1", int(body["url"].rpartition(":")[2]))
            thieves.append(HTTPServer(address, BaseHTTPRequestHandler))
            threading.Thread(target=thieves[0].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return hive.welcome(body)

    hive.answers["/v1/workers/ready"] = steal
    try:
        start_worker(hive.url, "--model", example_model, *SMALL, "--port-last", "65535", engine="llama-cpp")
        ready = hive.wait_state("ready")
        assert int(ready["url"].rpartition(":")[2]) > thieves[0].server_address[1]
    finally:
        for thief in thieves:
            thief.shutdown()
            thief.server_close()


def started_with(start_worker: StartWorker, hive: StubHive, model: str, *arguments: str) -> tuple[Worker, str, int]:
    worker = start_worker(hive.url, "--model", model, *SMALL, "--", *arguments, engine="llama-cpp")
    ready = hive.wait_state("ready")
    return worker, ready["url"], ready["engine_pid"]


def test_embeddings_take_a_whole_context_as_input(
    hive: StubHive, start_worker: StartWorker, example_model: str
) -> None:
    start_worker(
        *(hive.url, "--model", example_model, "--ctx-size", "1024", "--slots", "1"),
        *("--", "--embedding", "--pooling", "mean"),
        engine="llama-cpp",
    )
    url = hive.wait_state("ready")["url"]
    status, answer = ask(url, "/v1/embeddings", {"input": "hello " * 700})
    assert status == 200, answer
    assert len(answer["data"][0]["embedding"]) == 576


def test_reranking_is_served_when_asked_for(hive: StubHive, start_worker: StartWorker, example_model: str) -> None:
    _, url, _ = started_with(start_worker, hive, example_model, "--reranking")
    status, answer = ask(url, "/v1/rerank", {"query": "a", "documents": ["b", "c"]})
    assert (status, len(answer["results"])) == (200, 2)


def test_a_chat_template_of_its_own_is_used(hive: StubHive, start_worker: StartWorker, example_model: str) -> None:
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    _, url, _ = started_with(start_worker, hive, example_model, "--chat-template", template)
    status, answer = ask(url, "/apply-template", CHAT)
    assert (status, answer["prompt"]) == (200, "[Count from one to twenty.]")


def test_no_mmap_keeps_the_file_out_of_the_address_space(
    hive: StubHive, start_worker: StartWorker, example_model: str
) -> None:
    _, _, mapped = started_with(start_worker, hive, example_model)
    assert "SmolLM2" in Path(f"/proc/{mapped}/maps").read_text()
    before = len(hive.calls)
    start_worker(hive.url, "--model", example_model, *SMALL, "--", "--no-mmap", engine="llama-cpp")
    read = hive.wait_state("ready", after=before)["engine_pid"]
    assert "SmolLM2" not in Path(f"/proc/{read}/maps").read_text()


def test_threads_and_cache_types_are_taken(hive: StubHive, start_worker: StartWorker, example_model: str) -> None:
    worker, url, _ = started_with(
        *(start_worker, hive, example_model),
        *("--threads", "1", "--cache-type-k", "q8_0", "--cache-type-v", "q8_0", "--flash-attn", "on"),
    )
    assert "n_threads = 1" in worker.log
    assert ask(url, "/v1/chat/completions", CHAT)[0] == 200


def test_the_port_is_free_again_after_the_end(hive: StubHive, start_worker: StartWorker, example_model: str) -> None:
    port = str(free_port())
    for _ in range(2):
        before = len(hive.calls)
        worker = start_worker(hive.url, "--model", example_model, *SMALL, "--port", port, engine="llama-cpp")
        url = hive.wait_state("ready", after=before)["url"]
        assert url.endswith(f":{port}")
        assert ask(url, "/v1/models")[0] == 200
        worker.process.send_signal(signal.SIGTERM)
        wait_until(lambda w=worker: w.process.poll() is not None, "the end")
