"""The synthetic engine's process by itself."""

import contextlib
import http.client
import json
import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rbee.core.engine_args import parse
from rbee.worker.engines.base import Plan
from rbee.worker.engines.synthetic import Synthetic
from tests.integration.worker.real import DEADLINE, ENGINE_KEY, ask, free_port, wait_until

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "one two three"}]}
StartEngine = Callable[..., str]


def plan(slots: int, *arguments: str) -> Plan:
    return Plan(
        worker_id="w",
        model="",
        names=("alias", "w"),
        backend="cpu",
        device_count=1,
        host="127.0.0.1",
        slots=slots,
        ctx_size=4096,
        prompt_cache_bytes=0,
        engine_args=parse("synthetic", arguments),
        python="",
    )


@pytest.fixture
def engine() -> Iterator[StartEngine]:
    """Start an engine with so many slots and arguments; its URL, once it has loaded."""
    started: list[subprocess.Popen[bytes]] = []

    def start(slots: int = 4, *arguments: str, wait: bool = True) -> str:
        port = free_port()
        launch = Synthetic(plan(slots, *(arguments or ("--load-seconds", "0")))).launch(port, ENGINE_KEY)
        started.append(subprocess.Popen(launch.argv, env=launch.environment))
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: accepts(port), "the port")
        if wait:
            wait_until(lambda: ask(url, "/health")[0] == 200, "the load")
        return url

    yield start
    for process in started:
        process.kill()
        process.wait(DEADLINE)


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)


def raw_request(body: dict[str, Any], path: str = "/v1/chat/completions") -> bytes:
    content = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {ENGINE_KEY}"]
    lines += [f"Content-Length: {len(content)}", "", ""]
    return "\r\n".join(lines).encode() + content


def busy_slots(url: str) -> int:
    return sum(slot["is_processing"] for slot in ask(url, "/slots")[1])


def events(url: str, body: dict[str, Any], path: str = "/v1/chat/completions") -> list[Any]:
    connection = http.client.HTTPConnection(*address(url), timeout=DEADLINE)
    connection.request("POST", path, json.dumps(body), {"Authorization": f"Bearer {ENGINE_KEY}"})
    answer = connection.getresponse()
    assert answer.headers["Content-Type"] == "text/event-stream"
    lines = [line.removeprefix("data: ") for line in answer.read().decode().split("\n\n") if line]
    connection.close()
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_chat_has_the_shape_of_openai(engine: StartEngine) -> None:
    status, answer = ask(engine(), "/v1/chat/completions", CHAT)
    assert status == 200
    assert (answer["object"], answer["model"]) == ("chat.completion", "m")
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert len(answer["choices"][0]["message"]["content"].split()) == 16
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["timings"]["predicted_n"] == 16


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_token_limit_are_honoured(engine: StartEngine, field: str) -> None:
    assert ask(engine(), "/v1/chat/completions", {**CHAT, field: 3})[1]["usage"]["completion_tokens"] == 3


def test_a_stream_ends_with_its_usage_when_asked(engine: StartEngine) -> None:
    url = engine()
    asked = {**CHAT, "stream": True, "max_tokens": 5}
    plain = events(url, asked)
    full = events(url, {**asked, "stream_options": {"include_usage": True}})
    contents = [event["choices"][0]["delta"].get("content") for event in plain]
    assert contents[0] is None
    assert len([text for text in contents if text]) == 5
    assert plain[-1]["choices"][0]["finish_reason"] == "length"
    assert "usage" not in plain[-1]
    assert full[-1]["choices"] == []
    assert full[-1]["usage"]["completion_tokens"] == 5


def test_completions_and_embeddings_are_served_too(engine: StartEngine) -> None:
    url = engine()
    _, completion = ask(url, "/v1/completions", {"prompt": "one two", "max_tokens": 2})
    assert (completion["object"], completion["model"]) == ("text_completion", "alias")
    assert completion["choices"][0]["text"].split() == ["bees", "build"]
    streamed = events(url, {"prompt": "one", "max_tokens": 2, "stream": True}, "/v1/completions")
    assert "".join(event["choices"][0]["text"] for event in streamed) == "bees build "
    _, embeddings = ask(url, "/v1/embeddings", {"input": ["a", "b", "a"]})
    vectors = [entry["embedding"] for entry in embeddings["data"]]
    assert vectors[0] == vectors[2] != vectors[1]


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/v1/chat/completions", [], 400),
        ("/v1/chat/completions", {**CHAT, "max_tokens": -1}, 400),
        ("/v1/chat/completions", {**CHAT, "max_tokens": "5"}, 400),
        ("/v1/nothing", CHAT, 404),
        ("/metrics", CHAT, 404),
    ],
)
def test_bad_requests_get_an_error_and_do_no_harm(engine: StartEngine, path: str, body: Any, expected: int) -> None:
    url = engine()
    status, answer = ask(url, path, body)
    assert (status, answer["error"]["code"]) == (expected, expected)
    assert ask(url, "/health")[0] == 200


@pytest.mark.parametrize(
    "junk", [b"\x16\x03\x01\r\n\r\n", b"GET /\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n"]
)
def test_what_is_not_http_gets_400_and_a_closed_connection(engine: StartEngine, junk: bytes) -> None:
    with socket.create_connection(address(engine()), DEADLINE) as client:
        client.sendall(junk)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")


def test_it_loads_before_it_serves(engine: StartEngine) -> None:
    url = engine(1, "--load-seconds", "3600", wait=False)
    assert ask(url, "/health") == (
        503,
        {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}},
    )
    assert ask(url, "/v1/chat/completions", CHAT)[0] == 503


def test_a_stalled_load_answers_that_it_loads_and_does_nothing(engine: StartEngine) -> None:
    url = engine(1, "--stall-load", "--load-seconds", "0", wait=False)
    assert ask(url, "/health")[0] == 503
    assert ask(url, "/v1/models")[0] == 503


def test_a_loop_that_stopped_moves_nothing_more_while_its_health_says_ok(engine: StartEngine) -> None:
    url = engine(2, "--hang-after", "5", "--load-seconds", "0", "--tokens-per-second", "1e6")
    assert ask(url, "/v1/chat/completions", {**CHAT, "max_tokens": 3})[0] == 200
    first = socket.create_connection(address(url), DEADLINE)
    first.sendall(raw_request({**CHAT, "stream": True}))
    received = b""
    while received.count(b'"content": "') < 2:
        piece = first.recv(65536)
        assert piece
        received += piece
    before = counters(url)
    second = socket.create_connection(address(url), DEADLINE)
    second.sendall(raw_request(CHAT))
    wait_until(lambda: busy_slots(url) == 2, "the second request in its slot")
    first.close()
    assert ask(url, "/health") == (200, {"status": "ok"})
    assert counters(url) == before == {"prompt": 6, "generated": 5, "requests": 2}
    assert busy_slots(url) == 2
    second.close()


@pytest.mark.parametrize("mode", ["group", "session"])
def test_a_holder_keeps_the_port_when_the_engine_is_gone(mode: str) -> None:
    port = free_port()
    launch = Synthetic(plan(1, "--load-seconds", "0", "--fork-holder", mode)).launch(port, ENGINE_KEY)
    process = subprocess.Popen(launch.argv, env=launch.environment, start_new_session=True)
    holder = 0
    try:
        wait_until(lambda: accepts(port), "the port")
        holder = wait_until(lambda: next(iter(children(process.pid)), 0), "the holder")
        wait_until(lambda: mode == "group" or os.getsid(holder) == holder, "a session of its own")
        assert (os.getpgid(holder) == process.pid) == (mode == "group")
        assert ask(f"http://127.0.0.1:{port}", "/v1/nothing")[0] in (404, 503)
        process.kill()
        process.wait(DEADLINE)
        assert accepts(port)
        os.kill(holder, signal.SIGKILL)
        wait_until(lambda: not accepts(port), "the port to be free")
    finally:
        process.kill()
        process.wait(DEADLINE)
        if holder:
            with contextlib.suppress(ProcessLookupError):
                os.kill(holder, signal.SIGKILL)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def counters(url: str) -> dict[str, float]:
    names = {
        "prompt": "llamacpp:prompt_tokens_total",
        "generated": "llamacpp:tokens_predicted_total",
        "requests": "synthetic:requests_total",
    }
    return {short: metric(url, name) for short, name in names.items()}


def test_hundreds_of_streams_run_at_once(engine: StartEngine) -> None:
    url = engine(300)
    request = raw_request({**CHAT, "stream": True, "max_tokens": 40})
    received: dict[socket.socket, bytes] = {}
    with selectors.DefaultSelector() as selector:
        for _ in range(300):
            client = socket.create_connection(address(url), DEADLINE)
            client.sendall(request)
            selector.register(client, selectors.EVENT_READ)
            received[client] = b""
        deadline = time.monotonic() + DEADLINE
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(1.0):
                client = key.fileobj
                assert isinstance(client, socket.socket)
                received[client] += client.recv(65536)
                if received[client].endswith(b"0\r\n\r\n"):
                    selector.unregister(client)
                    client.close()
        left = len(selector.get_map())
        for client in received:
            client.close()
    assert left == 0
    assert all(stream.count(b'"content": "') == 40 for stream in received.values())


def test_requests_beyond_the_slots_wait_for_one(engine: StartEngine) -> None:
    url = engine(1, "--tokens-per-second", "50")
    first = socket.create_connection(address(url), DEADLINE)
    first.sendall(raw_request({**CHAT, "max_tokens": 1_000_000}))
    wait_until(lambda: busy_slots(url) == 1, "the first request in its slot")
    with socket.create_connection(address(url), DEADLINE) as second:
        second.sendall(raw_request({**CHAT, "max_tokens": 1}))
        wait_until(lambda: metric(url, "llamacpp:requests_deferred") == 1, "the second request to wait")
        first.close()  # a client that goes away frees its slot
        assert second.recv(65536).startswith(b"HTTP/1.1 200 ")
    wait_until(lambda: busy_slots(url) == 0, "free slots")


def test_generation_stops_when_the_client_goes_away(engine: StartEngine) -> None:
    url = engine(2, "--tokens-per-second", "200")
    client = socket.create_connection(address(url), DEADLINE)
    client.sendall(raw_request({**CHAT, "max_tokens": 1_000_000, "stream": True}))
    assert client.recv(65536)
    client.close()
    wait_until(lambda: busy_slots(url) == 0, "the slot")
    made = metric(url, "llamacpp:tokens_predicted_total")
    assert made < 1_000_000
    assert metric(url, "llamacpp:tokens_predicted_total") == made


def test_a_client_that_waited_and_left_is_forgotten(engine: StartEngine) -> None:
    url = engine(1)
    with socket.create_connection(address(url), DEADLINE) as first:
        first.sendall(raw_request({**CHAT, "max_tokens": 1_000_000}))
        wait_until(lambda: busy_slots(url) == 1, "the first request in its slot")
        second = socket.create_connection(address(url), DEADLINE)
        second.sendall(raw_request(CHAT))
        wait_until(lambda: metric(url, "llamacpp:requests_deferred") == 1, "the second request to wait")
        second.close()
        wait_until(lambda: metric(url, "llamacpp:requests_deferred") == 0, "the queue to be empty")
        assert busy_slots(url) == 1


def test_one_connection_carries_many_requests_even_at_once(engine: StartEngine) -> None:
    with socket.create_connection(address(engine()), DEADLINE) as client:
        client.sendall(raw_request({**CHAT, "max_tokens": 1}) * 3)
        answers = b""
        while answers.count(b"HTTP/1.1 200 OK") < 3:
            piece = client.recv(65536)
            assert piece
            answers += piece


def test_any_number_of_requests_at_once_is_answered_in_turn(engine: StartEngine) -> None:
    url = engine()
    request = f"GET /slots HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ENGINE_KEY}\r\n\r\n".encode()
    last = request.replace(b"Host: x", b"Host: x\r\nConnection: close")
    with socket.create_connection(address(url), DEADLINE) as connection:
        connection.sendall(request * 1000 + last)
        received = b"".join(iter(lambda: connection.recv(1 << 20), b""))
    assert received.count(b"HTTP/1.1 200 OK") == 1001
    assert ask(url, "/health")[0] == 200


@pytest.mark.parametrize("depth", [40, 500, 900, 100_000])
@pytest.mark.parametrize(("path", "field"), [("chat/completions", "messages"), ("embeddings", "input")])
def test_a_body_nested_too_deeply_is_refused(engine: StartEngine, path: str, field: str, depth: int) -> None:
    url = engine()
    content = b'{"%s": %b%b}' % (field.encode(), b"[" * depth, b"]" * depth)
    with contextlib.closing(http.client.HTTPConnection(*address(url), timeout=DEADLINE)) as connection:
        connection.request("POST", f"/v1/{path}", content, {"Authorization": f"Bearer {ENGINE_KEY}"})
        answer = connection.getresponse()
        assert (answer.status, b"error" in answer.read()) == (400, True)
    assert ask(url, "/health")[0] == 200


def test_a_name_of_a_model_that_is_no_name_is_not_repeated(engine: StartEngine) -> None:
    name: Any = []
    for _ in range(300):
        name = [name]
    assert ask(engine(), "/v1/embeddings", {"model": name, "input": "x"})[1]["model"] == "alias"


def test_a_chunked_request_is_read(engine: StartEngine) -> None:
    connection = http.client.HTTPConnection(*address(engine()), timeout=DEADLINE)
    content = json.dumps({**CHAT, "max_tokens": 2}).encode()
    headers = {"Authorization": f"Bearer {ENGINE_KEY}", "Transfer-Encoding": "chunked"}
    pieces = iter([content[:10], content[10:]])
    connection.request("POST", "/v1/chat/completions", pieces, headers, encode_chunked=True)
    with connection.getresponse() as answer:
        assert json.load(answer)["usage"]["completion_tokens"] == 2
    connection.close()


def test_held_bytes_are_really_resident(engine: StartEngine) -> None:
    port = address(engine(1, "--hold-bytes", str(64 << 20)))[1]
    pages = int(Path(f"/proc/{holder_of(port)}/statm").read_text().split()[1])
    assert pages * os.sysconf("SC_PAGE_SIZE") > 64 << 20


def test_mapped_bytes_are_resident_as_pages_of_a_file_and_leave_none_behind(engine: StartEngine) -> None:
    before = set(os.listdir("."))
    pid = holder_of(address(engine(1, "--map-bytes", str(64 << 20)))[1])
    kib = dict(line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "kB" in line)
    resident = {name: int(kib[name].split()[0]) << 10 for name in ("RssFile", "RssAnon", "RssShmem")}
    assert resident["RssFile"] + resident["RssShmem"] > 64 << 20
    assert resident["RssAnon"] < 32 << 20
    assert set(os.listdir(".")) == before


def holder_of(port: int) -> int:
    return next(pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if holds_port(pid, port))


def holds_port(pid: int, port: int) -> bool:
    try:
        return f'"port": {port}'.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def metric(url: str, name: str) -> float:
    connection = http.client.HTTPConnection(*address(url), timeout=DEADLINE)
    connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {ENGINE_KEY}"})
    text = connection.getresponse().read().decode()
    connection.close()
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(name + " "))


def test_a_signal_ends_it_at_once(engine: StartEngine) -> None:
    port = free_port()
    launch = Synthetic(plan(1)).launch(port, "")
    with subprocess.Popen(launch.argv, env=launch.environment) as process:
        wait_until(lambda: accepts(port), "the port")
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == -signal.SIGTERM
