"""GET /v1/requests and DELETE /v1/requests/{id} of a real hive, and what each key may do with them."""

import threading
from hashlib import sha256

import pytest

from tests.hives import Hive, wait_for

ADMIN, WEB, METRICS = "an-admin-key-of-length", "a-client-key-of-length", "a-metrics-key-of-length"
CHAT = "/v1/chat/completions"
BODY = {"model": "synthetic:x", "messages": [{"role": "user", "content": "a-secret-prompt"}]}


@pytest.fixture(name="keyed")
def keyed_hive(start_hive, tmp_path) -> Hive:
    config = tmp_path / "rbee-hive.toml"
    tables = []
    for name, key, role, limits in (
        ("web", WEB, "client", "max_in_flight = 1"),
        ("prometheus", METRICS, "metrics", ""),
    ):
        digest = sha256(key.encode()).hexdigest()
        tables.append(f'[keys.{name}]\nsha256 = "{digest}"\nrole = "{role}"\n{limits}\n')
    config.write_text("".join(tables))
    return start_hive({"auth.metrics_auth": "true"}, environ={"RBEE_API_TOKEN": ADMIN}, config=config)


def ready(hive, **fields):
    worker = hive.post("/v1/workers/spawn", {"model_ref": "synthetic:x", **fields}, token=ADMIN).json
    path = f"/v1/workers/{worker['worker_id']}"
    wait_for(lambda: hive.get(path, token=ADMIN).json["state"] == "idle", "the worker is ready")
    return worker["worker_id"]


def listed(hive, query=""):
    return hive.get(f"/v1/requests{query}", token=ADMIN).json["requests"]


def test_what_a_request_took_is_listed(keyed):
    worker_id = ready(keyed)
    answer = keyed.post(CHAT, {**BODY, "max_tokens": 20}, token=WEB)
    (row,) = listed(keyed)
    assert row["request_id"] == answer.headers["x-request-id"]
    assert (row["state"], row["status"], row["worker_id"], row["key"]) == ("finished", 200, worker_id, "web")
    assert row["prompt_tokens"] == answer.json["usage"]["prompt_tokens"]
    assert (row["generated_tokens"], row["finish_reason"]) == (20, "length")
    assert row["tokens_per_second"] > 0
    assert 0 < row["overhead_seconds"] < row["first_byte_seconds"] <= row["duration_seconds"]
    assert "secret" not in keyed.get("/v1/requests", token=ADMIN).body.decode()


def test_running_stream_is_cancelled_and_its_worker_is_idle_again(keyed):
    worker_id = ready(keyed)
    answers = []

    def ask():
        body = {**BODY, "stream": True, "max_tokens": 100_000, "ignore_eos": True}
        answers.append(keyed.post(CHAT, body, token=WEB, headers={"x-request-id": "mine"}))

    asking = threading.Thread(target=ask)
    asking.start()
    wait_for(lambda: [row for row in listed(keyed) if row["first_byte_seconds"]], "the stream runs")
    assert [row["request_id"] for row in listed(keyed, "?state=running&model=synthetic:x")] == ["mine"]
    assert keyed.post(CHAT, BODY, token=WEB).status == 429
    refused = keyed.call("DELETE", "/v1/requests/mine", token=WEB)
    assert refused.status == 403
    cancelled = keyed.call("DELETE", "/v1/requests/mine", token=ADMIN)
    assert cancelled.status == 202
    assert [row["request_id"] for row in cancelled.json["cancelled"]] == ["mine"]
    asking.join()
    assert b"request_cancelled" in answers[0].body.rpartition(b"data: ")[2]
    path = f"/v1/workers/{worker_id}"
    wait_for(lambda: keyed.get(path, token=ADMIN).json["state"] == "idle", "the worker is idle")
    again = keyed.call("DELETE", "/v1/requests/mine", token=ADMIN)
    assert (again.status, again.code) == (404, "request_not_found")
    assert "has ended already" in again.json["error"]["message"]
    assert keyed.post(CHAT, {**BODY, "max_tokens": 1}, token=WEB).status == 200


@pytest.mark.parametrize(("token", "status"), [(None, 401), (WEB, 403), (METRICS, 403)])
def test_only_an_admin_sees_and_ends_requests_and_workers(keyed, token, status):
    worker_id = ready(keyed)
    for method, path in (
        ("GET", "/v1/requests"),
        ("DELETE", "/v1/requests/x"),
        ("GET", "/v1/workers"),
        ("DELETE", f"/v1/workers/{worker_id}"),
        ("POST", f"/v1/workers/{worker_id}/restart"),
        ("POST", "/v1/workers/spawn"),
        ("GET", "/v1/events"),
    ):
        body = {"model_ref": "synthetic:x"} if method == "POST" else None
        assert keyed.call(method, path, body, token=token).status == status, (method, path)
    scraped = keyed.get("/metrics", token=token).status
    assert scraped == (200 if token == METRICS else status)
    assert keyed.post(CHAT, {**BODY, "max_tokens": 1}, token=token).status == (200 if token == WEB else status)


@pytest.mark.parametrize("request_id", ["nobody", "a%2Fb"])
def test_request_that_is_not_there_is_not_found(keyed, request_id):
    answer = keyed.call("DELETE", f"/v1/requests/{request_id}", token=ADMIN)
    assert (answer.status, answer.json["error"]["code"]) == (404, "request_not_found")


def test_list_that_is_asked_for_wrongly_is_refused(keyed):
    for query in ("?limit=-1", "?limit=x", "?state=odd", "?limit=99999999"):
        assert keyed.get(f"/v1/requests{query}", token=ADMIN).status == 422
    assert "/v1/requests/{request_id}" in keyed.get("/openapi.json", token=ADMIN).json["paths"]
