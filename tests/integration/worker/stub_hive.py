"""A hive that records what workers tell it, and answers as a test wants."""

import json
import socketserver
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.integration.worker.real import DEADLINE, ENGINE_KEY


@dataclass
class Call:
    path: str
    authorization: str | None
    body: dict[str, Any]
    at: float = field(default_factory=time.monotonic)


@dataclass
class StubHive:
    """Answers 200 until ``answers[path]`` says otherwise; ``url`` is what a worker gets as its callback URL."""

    url: str = ""
    calls: list[Call] = field(default_factory=list)
    answers: dict[str, Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self, call: Call) -> tuple[int, dict[str, Any]]:
        with self.changed:
            self.calls.append(call)
            self.changed.notify_all()
            answer = self.answers.get(call.path, self.welcome)
        return answer(call.body)

    @staticmethod
    def welcome(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if "state" in body:
            return 200, {"message": "Worker registered", "engine_key": ENGINE_KEY, "heartbeat_interval": 30}
        return 200, {"message": "Heartbeat received"}

    def wait_for(self, matches: Callable[[Call], Any], after: int = 0, timeout: float = DEADLINE) -> Call:
        """The first call from number *after* on that matches."""
        found: list[Call] = []

        def look() -> bool:
            found[:] = [call for call in self.calls[after:] if matches(call)]
            return bool(found)

        with self.changed:
            assert self.changed.wait_for(look, timeout), f"no such call; there were {self.calls}"
            return found[0]

    def wait_state(self, state: str, after: int = 0) -> dict[str, Any]:
        return self.wait_for(lambda call: call.body.get("state") == state, after).body

    def wait_beat(self, after: int = 0, **fields: Any) -> dict[str, Any]:
        def matches(call: Call) -> bool:
            return call.path == "/v1/heartbeat" and fields.items() <= call.body.items()

        return self.wait_for(matches, after).body

    def states(self) -> list[str]:
        return [call.body["state"] for call in self.calls if "state" in call.body]


def refusal(status: int, code: str, message: str = "said no") -> Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]:
    body = {"error": {"code": code, "message": message, "details": {}}, "request_id": "r"}
    return lambda _: (status, body)


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class _LoopbackServer(ThreadingHTTPServer):
    daemon_threads = True


@dataclass
class Hives:
    """Starts stub hives, one a call; a *socket_path* makes it listen there, a *port* makes it an old one come back."""

    running: list[socketserver.BaseServer] = field(default_factory=list)

    def start(self, socket_path: Path | None = None, port: int = 0) -> StubHive:
        hive = StubHive()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = hive.take(Call(self.path, self.headers["Authorization"], body))
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                with suppress(BrokenPipeError):
                    self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None: ...

        server: socketserver.BaseServer
        if socket_path is not None:
            server = _UnixServer(str(socket_path), Handler)
            hive.url = f"unix:{socket_path}"
        else:
            server = _LoopbackServer(("127.0.0.1", port), Handler)
            hive.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.running.append(server)
        return hive

    def stop(self) -> None:
        while self.running:
            server = self.running.pop()
            server.shutdown()
            server.server_close()
