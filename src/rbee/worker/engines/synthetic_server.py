"""The synthetic engine's process: OpenAI's shapes at a given pace, with llama.cpp's /health, /slots and /metrics.

Its configuration is JSON in RBEE_ENGINE_CONFIG, its key RBEE_ENGINE_KEY. Memory on request: --hold-bytes (written),
--map-bytes (of a mapped file, as weights are), --vram-bytes (claimed by admission, and never taken). Faults on request:
--leak-bytes (written too, but not what it was admitted with), --fail-load, --stall-load (never ready), --crash-after
(seconds), --hang-after (tokens), --fork-holder (a child that keeps the port open).
"""

import json
import mmap
import os
import signal
import sys
import time
from typing import Any, Final

from rbee.worker.engines.synthetic_generation import Generation, Pace, Slots, error_body, prompt_text
from rbee.worker.engines.synthetic_http import Connection, Loop, Request, listen

_OPEN_PATHS: Final = ("/health", "/v1/health")
_EMBEDDING_SIZE: Final = 8
_TOUCHED_AT_ONCE: Final = 1 << 30


class SyntheticServer:
    def __init__(self, loop: Loop, config: dict[str, Any], key: str) -> None:
        args = config["args"]
        pace = Pace(args.get("--first-token-seconds", 0.01), args.get("--tokens-per-second", 100.0))
        self._loop = loop
        self._key = key
        self._names = config["names"]
        self._ctx_size = config["ctx_size"]
        self._slots = Slots(loop, config["slots"], pace, args.get("--hang-after"))
        self._args = args
        self._held = b""
        self._mapped: mmap.mmap | None = None
        self._loaded = False

    def start_loading(self) -> None:
        if "--stall-load" in self._args:
            return
        self._loop.at(time.monotonic() + self._args.get("--load-seconds", 0.1), self._finish_loading)

    def _finish_loading(self) -> None:
        message = self._args.get("--fail-load")
        if message is not None:
            sys.exit(f"error: {message}")
        held = self._args.get("--hold-bytes", 0) + self._args.get("--leak-bytes", 0)
        self._held = b"\1" * held  # written, so that the pages are really there
        try:
            self._mapped = map_file(self._args.get("--map-bytes", 0))
        except OSError as error:
            sys.exit(f"error: cannot map so much: {error.strerror}")
        self._loaded = True
        if "--crash-after" in self._args:
            self._loop.at(time.monotonic() + self._args["--crash-after"], self._crash)

    def _crash(self) -> None:
        sys.exit(f"error: crashed {self._args['--crash-after']:g} s after the load, as it was told to")

    def handle(self, connection: Connection, request: Request) -> None:
        route = f"{request.method} {request.path}"
        if request.path not in _OPEN_PATHS and not self._allowed(request):
            connection.answer(401, error_body(401, "Invalid API Key", "authentication_error"))
        elif not self._loaded:
            connection.answer(503, error_body(503, "Loading model", "unavailable_error"))
        elif route in ("GET /health", "GET /v1/health"):
            connection.answer(200, {"status": "ok"})
        elif route == "GET /v1/models":
            connection.answer(200, self._models())
        elif route == "GET /slots":
            connection.answer(200, self._slots.page(self._ctx_size))
        elif route == "GET /metrics":
            connection.answer(200, self._slots.metrics().encode(), "text/plain; version=0.0.4")
        elif route in ("POST /v1/chat/completions", "POST /v1/completions", "POST /v1/embeddings"):
            self._infer(connection, request)
        else:
            connection.answer(404, error_body(404, "File Not Found", "not_found_error"))

    def _allowed(self, request: Request) -> bool:
        if not self._key:
            return True
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        return self._key in (given, request.headers.get("x-api-key", ""))

    def _infer(self, connection: Connection, request: Request) -> None:
        try:
            body = json.loads(request.body)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            connection.answer(400, error_body(400, "The body is not a JSON object", "invalid_request_error"))
            return
        try:
            self._generate(connection, body, request.path)
        except ValueError as error:
            connection.answer(400, error_body(400, str(error), "invalid_request_error"))

    def _generate(self, connection: Connection, body: dict[str, Any], path: str) -> None:
        if path == "/v1/embeddings":
            connection.answer(200, _embeddings(body, self._names[0]))
        else:
            self._slots.submit(Generation(connection, body, path == "/v1/chat/completions", self._names[0]))

    def _models(self) -> dict[str, Any]:
        entry = {"id": self._names[0], "aliases": self._names, "object": "model", "owned_by": "rbee", "created": 0}
        return {"object": "list", "data": [entry]}


def _embeddings(body: dict[str, Any], own_name: str) -> dict[str, Any]:
    """Unit vectors that depend on the text alone, so that a test can compare two of them. Raises ValueError."""
    given = body.get("input", "")
    texts = given if isinstance(given, list) else [given]
    data = []
    tokens = 0
    for index, text in enumerate(texts):
        words = prompt_text(text).split()
        tokens += len(words)
        raw = [1.0 + sum(map(ord, words[i] if i < len(words) else "")) % 97 for i in range(_EMBEDDING_SIZE)]
        length = sum(x * x for x in raw) ** 0.5
        data.append({"object": "embedding", "index": index, "embedding": [x / length for x in raw]})
    model = body["model"] if isinstance(body.get("model"), str) and body["model"] else own_name
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "model": model, "data": data, "usage": usage}


def map_file(size: int) -> mmap.mmap | None:
    """A sparse file of *size* bytes in the working directory, gone by its name, mapped and read page by page.

    Raises OSError where the file system takes no such file.
    """
    if size == 0:
        return None
    path = f"mapped-{os.getpid()}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.unlink(path)
        os.ftruncate(descriptor, size)
        mapped = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
    finally:
        os.close(descriptor)
    for start in range(0, size, _TOUCHED_AT_ONCE):
        mapped[start : min(size, start + _TOUCHED_AT_ONCE) : mmap.PAGESIZE]
    return mapped


def fork_holder(mode: str) -> None:
    """Fork a child that inherits the listening socket and holds it for ever; mode ``session``: in one of its own.

    No parent-death signal reaches it: the kernel clears that in a child.
    """
    if os.fork() != 0:
        return
    if mode == "session":
        os.setsid()
    while True:
        signal.pause()


def main() -> None:
    config = json.loads(os.environ["RBEE_ENGINE_CONFIG"])
    loop = Loop()
    server = SyntheticServer(loop, config, os.environ.get("RBEE_ENGINE_KEY", ""))
    try:
        listen(loop, config["host"], config["port"], server.handle)
    except OSError as error:
        sys.exit(f"error: couldn't bind {config['host']}:{config['port']}: {error.strerror}")
    if "--fork-holder" in config["args"]:
        fork_holder(config["args"]["--fork-holder"])
    server.start_loading()
    loop.run()


if __name__ == "__main__":
    main()
