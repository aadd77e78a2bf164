"""Whole lives of real workers against a stub hive."""

import json
import os
import signal
import socket
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.integration.worker.real import DEADLINE, ENGINE_KEY, TOKEN, StartWorker, alive, ask, wait_until
from tests.integration.worker.stub_hive import Hives, StubHive

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
SLOW = ("--", "--tokens-per-second", "20")


def open_stream(url: str, tokens: int) -> Any:
    """A chat stream of *tokens*, of which the first line has been read."""
    body = json.dumps({**CHAT, "max_tokens": tokens, "stream": True}).encode()
    headers = {"Authorization": f"Bearer {ENGINE_KEY}"}
    stream = urllib.request.urlopen(
        urllib.request.Request(url + "/v1/chat/completions", body, headers), timeout=DEADLINE
    )
    assert stream.readline().startswith(b"data: ")
    return stream


def environment_of(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def test_a_worker_announces_beats_serves_and_stops(hive: StubHive, start_worker: StartWorker) -> None:
    worker = start_worker(hive.url, "--heartbeat-interval", "0.2", "--alias", "small", "--incarnation", "7")
    ready = hive.wait_state("ready")
    hive.wait_beat()

    assert hive.states()[0] == "loading"
    assert {call.authorization for call in hive.calls} == {f"Bearer {TOKEN}"}
    assert ready["worker_id"] == "w0"
    assert (ready["incarnation"], ready["alias"], ready["slots_total"]) == (7, "small", 4)
    assert (ready["backend"], ready["device"], ready["pid"]) == ("cpu", 0, worker.process.pid)
    status, answer = ask(ready["url"], "/v1/chat/completions", {**CHAT, "model": "small"})
    assert status == 200
    assert (answer["model"], answer["usage"]["completion_tokens"]) == ("small", 8)

    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait_end() == 0
    assert not alive(ready["engine_pid"])
    assert (worker.ended()["reason"], worker.ended()["incarnation"], worker.ended()["exit_code"]) == ("stopped", 7, 0)
    assert "Heartbeat sent successfully" in worker.log


def test_the_kernel_would_kill_a_worker_before_whoever_started_it(hive: StubHive, start_worker: StartWorker) -> None:
    worker = start_worker(hive.url)
    engine_pid = hive.wait_state("ready")["engine_pid"]
    own, *theirs = (
        int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in ("self", worker.process.pid, engine_pid)
    )
    assert theirs == [min(1000, max(500, own + 500))] * 2


def test_a_load_that_cannot_map_its_file_says_so(hive: StubHive, start_worker: StartWorker) -> None:
    worker = start_worker(hive.url, "--", "--map-bytes", str(1 << 49))
    assert worker.wait_end() == 1
    assert "cannot map so much" in worker.ended()["message"]


def test_the_engine_pid_is_announced_before_the_model_is_loaded(hive: StubHive, start_worker: StartWorker) -> None:
    start_worker(hive.url, "--", "--load-seconds", "60")
    loading = hive.wait_for(lambda call: "engine_pid" in call.body).body
    assert loading["state"] == "loading"
    assert alive(loading["engine_pid"])
    first = hive.wait_state("loading")
    assert "engine_pid" not in first
    hive.wait_beat(health_status="healthy")


def test_beats_go_on_while_the_model_loads(hive: StubHive, start_worker: StartWorker) -> None:
    start_worker(hive.url, "--heartbeat-interval", "0.1", "--", "--load-seconds", "60")
    for _ in range(5):
        hive.wait_beat(after=len(hive.calls), health_status="healthy")
    assert "ready" not in hive.states()


def test_a_unix_socket_is_a_callback_url_too(hives: Hives, start_worker: StartWorker, tmp_path: Path) -> None:
    hive = hives.start(socket_path=tmp_path / "hive.sock")
    start_worker(hive.url)
    hive.wait_state("ready")


def test_the_engine_demands_the_key_that_the_hive_gave(hive: StubHive, start_worker: StartWorker) -> None:
    start_worker(hive.url)
    url = hive.wait_state("ready")["url"]
    assert ask(url, "/health", key="")[0] == 200
    assert ask(url, "/v1/models", key="")[0] == 401
    assert ask(url, "/v1/chat/completions", CHAT, key="another")[0] == 401
    assert ask(url, "/v1/models")[0] == 200


def test_no_secret_reaches_a_command_line_and_no_token_the_engine(hive: StubHive, start_worker: StartWorker) -> None:
    worker = start_worker(hive.url, "--incarnation", "3", HF_TOKEN="private", RBEE_API_TOKEN="private")
    engine = hive.wait_state("ready")["engine_pid"]
    lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (worker.process.pid, engine)]
    assert not any(secret.encode() in line for secret in (TOKEN, ENGINE_KEY) for line in lines)
    environment = environment_of(engine)
    assert environment["RBEE_WORKER_INCARNATION"] == "w0:3"
    assert environment["RBEE_ENGINE_KEY"] == ENGINE_KEY
    assert not {TOKEN, "private"} & set(environment.values())


def test_without_a_token_no_authorization_is_sent(hive: StubHive, start_worker: StartWorker) -> None:
    start_worker(hive.url, RBEE_WORKER_TOKEN="")
    hive.wait_beat()
    assert {call.authorization for call in hive.calls} == {None}


def test_a_port_that_is_taken_gives_way_to_the_next_free_one(hive: StubHive, start_worker: StartWorker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        start_worker(hive.url, "--port", str(port), "--port-last", "65535")
        url = hive.wait_state("ready")["url"]
    assert int(url.rpartition(":")[2]) > port
    assert ask(url, "/health")[0] == 200


def test_no_port_left_ends_the_worker_with_the_range_in_its_reason(hive: StubHive, start_worker: StartWorker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        worker = start_worker(hive.url, "--port", port, "--port-last", port)
        assert worker.wait_end() == 1
    assert worker.ended()["reason"] == "load_failed"
    assert f"no port from {port} to {port} is free" in worker.ended()["message"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_the_running_stream_end_first(
    hive: StubHive, start_worker: StartWorker, number: signal.Signals
) -> None:
    worker = start_worker(hive.url, "--heartbeat-interval", "0.1", "--drain-timeout", "600", *SLOW)
    with open_stream(hive.wait_state("ready")["url"], tokens=20) as stream:
        worker.process.send_signal(number)
        wait_until(lambda: "Draining" in worker.log, "the drain")
        hive.wait_beat(after=len(hive.calls))
        rest = stream.read()
    assert rest.rstrip().endswith(b"data: [DONE]")
    assert worker.wait_end() == 0
    assert worker.ended()["message"] == "stopped"


def test_a_stream_that_outlasts_the_drain_time_is_cut(hive: StubHive, start_worker: StartWorker) -> None:
    worker = start_worker(hive.url, "--drain-timeout", "0.3", *SLOW)
    with open_stream(hive.wait_state("ready")["url"], tokens=100_000):
        worker.process.send_signal(signal.SIGTERM)
        assert worker.wait_end() == 0
    assert worker.ended()["message"] == "stopped with requests still running"


def test_a_second_signal_ends_it_at_once(hive: StubHive, start_worker: StartWorker) -> None:
    worker = start_worker(hive.url, *SLOW)
    with open_stream(hive.wait_state("ready")["url"], tokens=100_000):
        worker.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "Draining" in worker.log, "the drain")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.wait_end() == 0
    assert worker.ended()["message"] == "stopped at once, on a second signal"


def test_a_stop_during_the_load_does_not_wait_for_it(hive: StubHive, start_worker: StartWorker) -> None:
    worker = start_worker(hive.url, "--", "--load-seconds", "3600")
    engine = hive.wait_for(lambda call: "engine_pid" in call.body).body["engine_pid"]
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait_end() == 0
    assert not alive(engine)
    assert worker.ended()["message"] == "stopped while loading"


def test_a_killed_keeper_takes_its_engine_with_it(hive: StubHive, start_worker: StartWorker) -> None:
    worker = start_worker(hive.url)
    engine = hive.wait_state("ready")["engine_pid"]
    worker.process.kill()
    worker.wait_end()
    wait_until(lambda: not alive(engine), "the end of the engine")


def test_a_killed_engine_ends_the_worker_with_the_reason(hive: StubHive, start_worker: StartWorker) -> None:
    worker = start_worker(hive.url)
    os.kill(hive.wait_state("ready")["engine_pid"], signal.SIGKILL)
    assert worker.wait_end() == 1
    failed = hive.wait_state("failed")
    assert "killed by SIGKILL" in failed["reason"]
    record = worker.ended()
    assert (record["reason"], record["engine_signal"]) == ("crashed", signal.SIGKILL)
    assert record["message"] == failed["reason"]


def test_an_engine_that_crashes_is_quoted_in_the_reason(hive: StubHive, start_worker: StartWorker) -> None:
    worker = start_worker(hive.url, "--", "--crash-after", "0.2")
    assert worker.wait_end() == 1
    assert "crashed 0.2 s after the load, as it was told to" in hive.wait_state("failed")["reason"]
    assert (worker.ended()["reason"], worker.ended()["engine_exit_code"]) == ("crashed", 1)


def test_a_failed_load_tells_the_hive_why(hive: StubHive, start_worker: StartWorker) -> None:
    worker = start_worker(hive.url, "--", "--fail-load", "the moon is full")
    assert worker.wait_end() == 1
    assert "the moon is full" in hive.wait_state("failed")["reason"]
    assert "ready" not in hive.states()
    assert worker.ended()["reason"] == "load_failed"


def test_the_last_lines_are_known_without_a_log_file_too(
    hive: StubHive, start_worker: StartWorker, tmp_path: Path
) -> None:
    fifo = tmp_path / "stderr"
    os.mkfifo(fifo)
    copied: list[bytes] = []
    reader = threading.Thread(target=lambda: copied.append(fifo.read_bytes()))
    reader.start()
    with fifo.open("wb") as pipe:
        worker = start_worker(hive.url, "--", "--fail-load", "the moon is full", stderr=pipe)
    assert worker.wait_end() == 1
    reader.join(DEADLINE)
    assert "the moon is full" in hive.wait_state("failed")["reason"]
    assert b"error: the moon is full" in copied[0]


def test_a_stranger_on_the_chosen_port_is_not_taken_for_the_engine(hive: StubHive, start_worker: StartWorker) -> None:
    """Between the choice of the port and the bind somebody takes it who answers 200 to everything."""
    thieves: list[HTTPServer] = []

    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: Any) -> None: ...

    def steal(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if not thieves:
            thieves.append(HTTPServer(("127.0.0.1", int(body["url"].rpartition(":")[2])), Stranger))
            threading.Thread(target=thieves[0].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return hive.welcome(body)

    hive.answers["/v1/workers/ready"] = steal
    try:
        start_worker(hive.url, "--port-last", "65535")
        ready = hive.wait_state("ready")
        assert int(ready["url"].rpartition(":")[2]) > thieves[0].server_address[1]
        assert ask(ready["url"], "/v1/chat/completions", CHAT)[0] == 200
    finally:
        for thief in thieves:
            thief.shutdown()
            thief.server_close()


def test_a_log_that_was_cut_still_tells_the_reason(hive: StubHive, start_worker: StartWorker) -> None:
    worker = start_worker(hive.url, "--", "--crash-after", "0.5")
    hive.wait_state("ready")
    os.truncate(worker.log_path, 0)
    assert worker.wait_end() == 1
    assert "as it was told to" in hive.wait_state("failed")["reason"]


def test_under_a_hive_the_engine_stays_in_the_group_that_the_hive_ends(
    hive: StubHive, start_worker: StartWorker
) -> None:
    worker = start_worker(hive.url)
    assert os.getpgid(hive.wait_state("ready")["engine_pid"]) == worker.process.pid


def test_by_hand_the_engine_is_out_of_reach_of_the_terminals_signals(hive: StubHive, start_worker: StartWorker) -> None:
    worker = start_worker(hive.url, leads_session=False)
    engine = hive.wait_state("ready")["engine_pid"]
    assert os.getpgid(engine) == engine
    worker.process.send_signal(signal.SIGINT)
    assert worker.wait_end() == 0
    assert not alive(engine)


def test_a_signal_for_the_keeper_reaches_a_sleeping_one(hive: StubHive, start_worker: StartWorker) -> None:
    """Half an hour between beats: nothing else wakes it."""
    worker = start_worker(hive.url, "--heartbeat-interval", "1800")
    hive.wait_state("ready")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait_end() == 0


def test_a_frozen_engine_makes_the_worker_degraded(hive: StubHive, start_worker: StartWorker) -> None:
    start_worker(hive.url, "--heartbeat-interval", "0.2")
    engine = hive.wait_state("ready")["engine_pid"]
    os.kill(engine, signal.SIGSTOP)
    try:
        hive.wait_beat(after=len(hive.calls), health_status="degraded")
    finally:
        os.kill(engine, signal.SIGCONT)
    hive.wait_beat(after=len(hive.calls), health_status="healthy")


def test_telemetry_counts_what_the_engine_did(hive: StubHive, start_worker: StartWorker) -> None:
    start_worker(hive.url, "--heartbeat-interval", "0.1")
    url = hive.wait_state("ready")["url"]
    ask(url, "/v1/chat/completions", CHAT)
    beat = hive.wait_for(lambda call: call.body.get("telemetry", {}).get("generated_tokens_total") == 8).body
    telemetry = beat["telemetry"]
    assert (telemetry["requests_total"], telemetry["prompt_tokens_total"], telemetry["slots_total"]) == (1, 2, 4)
    assert telemetry["slots_busy"] == 0
    assert telemetry["rss_bytes"] > 1 << 20
    assert "vram_bytes" not in telemetry


def test_a_bad_command_line_is_told_in_the_exit_file(hive: StubHive, start_worker: StartWorker) -> None:
    worker = start_worker(hive.url, "--incarnation", "3", "--slots", "0")
    assert worker.wait_end() == 2
    word = worker.ended()
    assert (word["incarnation"], word["reason"], word["exit_code"]) == (3, "load_failed", 2)
    assert "--slots" in word["message"]


def test_a_description_that_cannot_be_read_is_told_in_the_exit_file(hive: StubHive, start_worker: StartWorker) -> None:
    worker = start_worker(hive.url, "--incarnation", "3", RBEE_WORKER_SPEC="[]")
    assert worker.wait_end() == 2
    assert "RBEE_WORKER_SPEC" in worker.ended()["message"]


def test_a_host_that_does_not_resolve_is_told_in_one_sentence(hive: StubHive, start_worker: StartWorker) -> None:
    worker = start_worker(hive.url, "--host", "no.such.host.invalid")
    assert worker.wait_end() == 1
    assert "the host no.such.host.invalid is not known here" in worker.ended()["message"]
    assert "Traceback" not in worker.log
