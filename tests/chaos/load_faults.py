"""Faults of the way to ready: loads that end, take long or never end, ports that are lost, models that only crash."""

import json
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.chaos.catalog import fault
from tests.chaos.clients import Wish
from tests.chaos.stage import LOAD_TIMEOUT, STABLE_AFTER, Stage, Violated
from tests.hives import Answer, wait_for

WORDS_OF_THE_ENGINE = "no kernel for this machine"


def _wait_engine_loads(stage: Stage, worker_id: str) -> dict[str, Any]:
    def probe() -> dict[str, Any] | None:
        worker = stage.hive.worker(worker_id)
        return worker if worker["state"] == "loading" and worker["engine_pid"] else None

    return wait_for(probe, f"the engine of {worker_id} loads")


def _exit_reason(stage: Stage, worker_id: str, since: int) -> str:
    step = stage.story.wait_step(
        lambda step: step.worker_id == worker_id and step.exit_reason is not None, f"{worker_id} ended", since
    )
    return str(step.exit_reason)


@fault("engine exits during its load", weight=3)
def exit_during_load(stage: Stage) -> None:
    """A load that fails leaves nothing behind, and is tried again."""
    worker_id, model = stage.spawn_odd(arguments={"--load-seconds": 600})
    old = _wait_engine_loads(stage, worker_id)
    stage.mend(model)
    stage.injected()
    os.kill(old["engine_pid"], signal.SIGKILL)
    stage.wait_replaced(old)
    stage.dismiss(worker_id)


@fault("load slower than the load timeout, with progress", weight=1)
def slow_load(stage: Stage) -> None:
    """A load that makes progress is given the time that it needs."""
    seconds = 2 * LOAD_TIMEOUT
    worker_id, _ = stage.spawn_odd(arguments={"--load-seconds": seconds}, works_while_loading=seconds + 1)
    stage.injected()
    worker = stage.wait_serving(worker_id)
    if worker["incarnation"] != 1:
        raise Violated(f"a slow load was ended: {worker['last_exit']}")
    stage.dismiss(worker_id)


@fault("load that never becomes ready", weight=1)
def never_ready(stage: Stage) -> None:
    """No worker stays in a state for ever: a load without progress is ended, and says why."""
    mark = len(stage.story.steps)
    worker_id, model = stage.spawn_odd(never_ready=True)
    old = _wait_engine_loads(stage, worker_id)
    stage.injected()
    reason = _exit_reason(stage, worker_id, mark)
    stage.mend(model)
    if reason != "load_timeout":
        raise Violated(f"a load without progress was ended as {reason}")
    stage.wait_replaced(old)
    stage.dismiss(worker_id)


@fault("deleted while loading")
def delete_loading(stage: Stage) -> None:
    """A load ends when nobody wants it any more."""
    worker_id, _ = stage.spawn_odd(arguments={"--load-seconds": 600})
    _wait_engine_loads(stage, worker_id)
    stage.injected()
    stage.dismiss(worker_id)


@fault("deleted by force while starting")
def delete_starting(stage: Stage) -> None:
    """A worker that is ended between its row, its fork and its first call leaves nothing behind."""
    worker_id, _ = stage.spawn_odd()
    stage.injected()
    stage.let_pass(stage.rng.uniform(0.0, 0.3))
    stage.dismiss(worker_id, force=True)


class Thief:
    """Listens on ports that are meant for others, and answers as a healthy engine would, under its own name."""

    def __init__(self) -> None:
        self._servers: list[ThreadingHTTPServer] = []

    def steal(self, port: int) -> bool:
        """Whether it came before the engine."""
        try:
            server = ThreadingHTTPServer(("127.0.0.1", port), _Impostor)
        except OSError:
            return False
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        self._servers.append(server)
        return True

    def end(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Impostor(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer({"status": "ok"})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self._answer({"system_fingerprint": "a stranger", "usage": {"completion_tokens": 8}, "choices": []})

    def _answer(self, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return


@fault("port stolen between choice and bind")
def steal_port(stage: Stage) -> None:
    """No request is answered by a stranger who came to the port first."""
    thief = Thief()
    try:
        model = f"synthetic:{stage.new_name()}"
        answer = stage.hive.post("/v1/workers/spawn", {"model_ref": model})
        worker_id = answer.json["worker_id"]
        # Once the keeper has been told its port, and once more when it has chosen another and told the hive.
        thief.steal(_port(answer.json["url"]))
        told = wait_for(lambda: stage.hive.worker(worker_id).get("url"), "the keeper tells its address")
        thief.steal(_port(told))
        stage.injected()
        stage.wait_serving(worker_id)
        if (outcome := stage.traffic.ask(Wish(model))).kind != "answered":
            raise Violated(f"the worker whose port was stolen does not serve: {outcome}")
        stage.dismiss(worker_id)
    finally:
        thief.end()


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


def _spawn_again(stage: Stage, model: str) -> Answer:
    return stage.hive.post("/v1/workers/spawn", {"model_ref": model, "engine": "odd"})


def _wait_open(stage: Stage, worker_id: str) -> dict[str, Any]:
    def probe() -> dict[str, Any] | None:
        worker = stage.hive.worker(worker_id)
        is_open = worker["state"] == "failed" and (worker.get("circuit") or {}).get("state") == "open"
        return worker if is_open else None

    return wait_for(probe, f"the circuit of {worker_id} is open")


def _check_refusal(answer: Answer) -> None:
    if (answer.status, answer.code) != (503, "circuit_open"):
        raise Violated(f"while its circuit is open, a spawn was answered with {answer.status}: {answer.body!r}")
    details = answer.json["error"]["details"]
    missing = {"key", "reason", "exit_code", "signal", "last_log_lines", "probe_at"} - set(details)
    if missing or int(answer.headers.get("retry-after", "0")) < 1:
        raise Violated(f"the refusal lacks {missing or 'Retry-After'}: {answer.headers} {answer.body!r}")
    if not any(WORDS_OF_THE_ENGINE in line for line in details["last_log_lines"]):
        raise Violated(f"the refusal does not hold the engine's own words: {details['last_log_lines']}")


@fault("crash loop: exits at once", weight=1)
def crash_at_once(stage: Stage) -> None:
    """A crash loop ends: the circuit opens and says why; after its time there is one try, which may succeed."""
    worker_id, model = stage.spawn_odd(exit_at_once=WORDS_OF_THE_ENGINE)
    stage.injected()
    failed = _wait_open(stage, worker_id)
    answer = _spawn_again(stage, model)
    if stage.hive.worker(worker_id)["state"] == "failed":
        _check_refusal(answer)
    again = wait_for(lambda: _later(stage, failed), "the circuit let one try through")
    if again["incarnation"] != failed["incarnation"] + 1:
        raise Violated(f"half open, it was tried more than once: {again['incarnation']} after {failed['incarnation']}")
    _wait_open(stage, worker_id)
    stage.mend(model)
    stage.wait_serving(worker_id)
    stage.dismiss(worker_id)


def _later(stage: Stage, old: dict[str, Any]) -> dict[str, Any] | None:
    now = stage.hive.worker(old["worker_id"])
    return now if now.get("incarnation", 0) > old["incarnation"] else None


@fault("slow crash loop", weight=1)
def slow_crash_loop(stage: Stage) -> None:
    """A worker that always crashes before it was stable is given up, however slowly it crashes."""
    life = STABLE_AFTER / 4
    worker_id, model = stage.spawn_odd(arguments={"--crash-after": life, "--load-seconds": 0.01})
    stage.injected()
    failed = _wait_open(stage, worker_id)
    stage.mend(model)
    key = failed["circuit"]["key"]
    answer = stage.hive.post(f"/v1/circuits/{key}/reset", {})
    if answer.status != 202:
        raise Violated(f"the circuit could not be reset: {answer.status} {answer.body!r}")
    stage.wait_serving(worker_id)
    stage.dismiss(worker_id)
