"""Real workers and their engines, as a test sees them."""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEADLINE = 30.0
"""Seconds after which a test gives up on what a loaded machine should long have done."""

ENGINE_KEY = "engine-key-of-this-test"
TOKEN = "worker-token-of-this-test"


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """Poll state that belongs to another process until it is truthy; its value."""
    deadline = time.monotonic() + DEADLINE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {DEADLINE:g} s for {what}"
        time.sleep(0.01)
    return value


@dataclass
class Worker:
    process: subprocess.Popen[bytes]
    log_path: Path
    exit_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_end(self) -> int:
        return self.process.wait(DEADLINE)

    def ended(self) -> dict[str, Any]:
        """What the exit file says."""
        record: dict[str, Any] = json.loads(self.exit_path.read_text())
        return record


StartWorker = Callable[..., Worker]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def alive(pid: int) -> bool:
    """Whether *pid* runs; a zombie that nobody has reaped yet does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def ask(url: str, path: str, body: dict[str, Any] | None = None, key: str = ENGINE_KEY) -> tuple[int, Any]:
    """Status and JSON of one call to an engine."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, data, headers), timeout=DEADLINE) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
