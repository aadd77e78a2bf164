"""A real rbee-hive for a test: its own state directory and free port, ended by its pid, nothing left behind."""

import contextlib
import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rbee.core.model_ref import BUILT_IN_ALIASES

T = TypeVar("T")
DEADLINE = 60.0
"""Seconds within which whatever a test waits for has happened, on a machine that does much else."""
QUICK = {"heartbeat.interval": "0.5s", "heartbeat.stale_after": "2s"}


def wait_for(probe: Callable[[], T], what: str, deadline: float = DEADLINE) -> T:
    """The first true value of *probe*; for the state of other processes, which send us no event."""
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        if value := probe():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {deadline:g} s: {what}")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return self.json["error"]["code"]


@dataclass
class Hive:
    """*settings* are dotted keys; *environ* is added to a clean environment."""

    state_dir: Path
    settings: dict[str, str] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)
    config: Path | None = None
    port: int = 0
    process: "subprocess.Popen[bytes] | None" = None

    def command(self) -> list[str]:
        argv = [sys.executable, "-m", "rbee.cli.hive", "daemon", "--port", str(self.port), "--log-format", "json"]
        argv += ["--state-dir", str(self.state_dir)]
        if self.config is not None:
            argv += ["--config", str(self.config)]
        for key, value in self.settings.items():
            argv += ["--set", f"{key}={value}"]
        return argv

    def start(self) -> "Hive":
        self.launch()
        self.port = wait_for(self.listening, "the hive listens")
        wait_for(lambda: self.get("/readyz").status == 200, "the hive is ready")
        return self

    def launch(self) -> None:
        """Start the process and wait for nothing."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as output:
            self._log_start = output.tell()
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=clean_environ(self.environ)
            )

    @property
    def host(self) -> str:
        return self.settings.get("server.host", "127.0.0.1")

    @property
    def log_path(self) -> Path:
        return self.state_dir.with_name(f"{self.state_dir.name}.log")

    def listening(self) -> int:
        """Its port, or 0 while it does not listen."""
        assert self.process is not None
        assert self.process.poll() is None, self.log_path.read_text()
        return next((int(line["url"].rpartition(":")[2]) for line in self.log("hive_listening")), 0)

    def log(self, event: str | None = None) -> list[dict[str, Any]]:
        """The lines of this run's log, those of one event if it is named."""
        data = self.log_path.read_bytes()[self._log_start :]
        lines = [json.loads(line) for line in data.splitlines() if line.startswith(b"{")]
        return [line for line in lines if event is None or line["event"] == event]

    # HTTP

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = DEADLINE,
    ) -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        sent = {"connection": "close", **(headers or {})}
        if token is not None:
            sent["authorization"] = f"Bearer {token}"
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        if data is not None:
            sent.setdefault("content-type", "application/json")
        with contextlib.closing(connection):
            connection.request(method, path, data, sent)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def get(self, path: str, **options: Any) -> Answer:
        return self.call("GET", path, **options)

    def post(self, path: str, body: Any, **options: Any) -> Answer:
        return self.call("POST", path, body, **options)

    @contextlib.contextmanager
    def stream(self, path: str, headers: dict[str, str] | None = None, body: Any = None) -> Iterator[Iterator[bytes]]:
        """The lines of an answer as they come; leaving closes the connection at once."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=DEADLINE)
        sent = {"content-type": "application/json", **(headers or {})} if body is not None else headers or {}
        connection.request("GET" if body is None else "POST", path, body and json.dumps(body).encode(), sent)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        try:
            yield iter(answer.readline, b"")
        finally:
            answer.close()
            connection.close()

    def raw(self, data: bytes, timeout: float = DEADLINE) -> bytes:
        """What the hive answers to these bytes, until it closes the connection."""
        with socket.create_connection((self.host, self.port), timeout) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    # Workers

    def spawn(self, model_ref: str = "synthetic:x", **fields: Any) -> str:
        answer = self.post("/v1/workers/spawn", {"model_ref": model_ref, **fields})
        assert answer.status == 200, answer.body
        return str(answer.json["worker_id"])

    def worker(self, worker_id: str) -> dict[str, Any]:
        answer = self.get(f"/v1/workers/{worker_id}")
        return answer.json if answer.status == 200 else {"state": "gone"}

    def wait_state(self, worker_id: str, *states: str) -> dict[str, Any]:
        def probe() -> dict[str, Any] | None:
            seen = self.worker(worker_id)
            return seen if seen["state"] in states else None

        return wait_for(probe, f"{worker_id} is {' or '.join(states)}")

    def ready(self, model_ref: str = "synthetic:x", **fields: Any) -> dict[str, Any]:
        return self.wait_state(self.spawn(model_ref, **fields), "idle")

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of one name whose labels include these; 0 without any."""
        total = 0.0
        for line in self.get("/metrics").body.decode().splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.partition("{")[0] == name and all(f'{k}="{v}"' in sample for k, v in labels.items()):
                total += float(value)
        return total

    # Ends

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def stop(self, timeout: float = DEADLINE) -> int:
        assert self.process is not None
        self.signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def processes(self) -> list[int]:
        """Every living process of any worker of this hive: it runs in a folder of the state directory."""
        return [pid for pid in pids() if _cwd(pid).startswith(f"{self.state_dir}/") and is_alive(pid)]

    def end(self) -> None:
        """Whatever the test did: no process of it is there afterwards."""
        assert self.process is not None
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def running_hive(state_dir: Path, settings: dict[str, str] | None = None, **options: Any) -> Iterator[Hive]:
    hive = Hive(state_dir, settings or {}, **options)
    try:
        yield hive.start()
    finally:
        if hive.process is not None:
            hive.end()


def example_model() -> Path:
    """The example model's file, found without importing its package."""
    package, _, file = BUILT_IN_ALIASES["example"].removeprefix("pkg:").partition("/")
    spec = importlib.util.find_spec(package)
    assert spec is not None, "the example model is not installed: make venv"
    return Path(next(iter(spec.submodule_search_locations or []))) / file


def clean_environ(added: dict[str, str] | None = None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RBEE_")}
    return {**kept, **(added or {})}


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def is_alive(pid: int) -> bool:
    """Whether a process runs: one that only waits to be reaped does not."""
    stat = _read(f"/proc/{pid}/stat")
    return bool(stat) and stat[stat.rindex(b")") + 2 : stat.rindex(b")") + 3] not in (b"Z", b"X")


def _cwd(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
