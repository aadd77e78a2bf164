import json
import socket

import pytest
from click.testing import CliRunner

from rbee.cli.main import cli
from rbee.cli.workers import human_age, human_size


def test_ps_shows_a_line_a_worker(rbee, hive, worker):
    hive.workers = [
        worker(alias="chat", state="busy", in_flight=1, message="Ready."),
        worker(worker_id="w-2", state="failed", message="the engine ended with exit code 3", memory=None),
        worker(worker_id="w-3", external=True, device=None, last_heartbeat_age_seconds=None, idle_timeout=300.0),
    ]
    result = rbee("ps")
    assert result.exit_code == 0
    lines = [line.split("  ") for line in result.stdout.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells == [
        ["ID", "MODEL", "STATE", "PROCESSOR", "SLOTS", "MEMORY", "BEAT", "UNTIL"],
        ["w-1", "chat", "busy", "100% CPU", "1/4", "200 MiB", "3s ago", "forever"],
        [
            "w-2",
            "SmolLM2-135M-Instruct.Q4_1",
            "failed",
            "100% CPU",
            "0/4",
            "-",
            "3s ago",
            "the engine ended with exit code 3",
        ],
        ["w-3", "SmolLM2-135M-Instruct.Q4_1", "idle (external)", "100% CPU", "0/4", "200 MiB", "-", "unused for 5m"],
    ]


def test_ps_without_workers_says_how_to_get_one(rbee):
    result = rbee("ps")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "rbee run example" in result.stderr


def test_ps_json_is_what_the_hive_said(rbee, hive, worker):
    hive.workers = [worker()]
    assert json.loads(rbee("ps", "--json").stdout) == {"workers": [worker()]}


def test_ps_survives_a_record_with_little_in_it(rbee, hive):
    hive.workers = [{"worker_id": "w", "state": "starting", "model_ref": "odd"}]
    assert "starting" in rbee("ps").stdout


def test_no_hive_is_one_line_that_says_how_to_start_one():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        result = CliRunner().invoke(cli, ["ps", "--url", f"127.0.0.1:{taken.getsockname()[1]}"])
    assert result.exit_code == 1
    assert "No hive runs at http://127.0.0.1:" in result.stderr
    assert "rbee-hive daemon" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("answer", [(200, "<html>"), (404, "nothing here")])
def test_somebody_else_on_the_port_is_recognised(rbee, hive, answer):
    hive.routes["GET", "/v1/workers"] = answer
    result = rbee("ps")
    assert result.exit_code == 1
    assert "is not a rbee hive" in result.stderr


def test_refusal_prints_the_message_of_the_hive(rbee, hive, refusal):
    hive.routes["POST", "/v1/workers/spawn"] = (
        507,
        refusal("does_not_fit", "It needs 9 GiB. Raise limits.max_worker_memory."),
    )
    result = rbee("spawn", "example")
    assert result.exit_code == 1
    assert result.stderr == "Error: It needs 9 GiB. Raise limits.max_worker_memory.\n"


def test_missing_token_names_the_variable(rbee, hive, refusal):
    hive.routes["GET", "/v1/workers"] = (401, refusal("unauthorized", "A token is needed."))
    assert "RBEE_API_TOKEN" in rbee("ps").stderr


def test_token_is_sent_as_bearer(hive):
    CliRunner(env={"RBEE_URL": hive.url, "RBEE_API_TOKEN": "correct-horse-battery"}).invoke(cli, ["ps"])
    assert hive.headers[0]["Authorization"] == "Bearer correct-horse-battery"


@pytest.mark.parametrize(
    "args",
    [
        ["nix"],
        ["spawn"],
        ["spawn", "m", "--slots", "0"],
        ["spawn", "m", "--max-memory", "lots"],
        ["ps", "--url", "ftp://x"],
        ["spawn", "m", "--idle-timeout", "1y"],
        ["logs", "w", "-n", "-1"],
        ["run"],
    ],
)
def test_wrong_usage_ends_with_two(rbee, hive, args):
    assert rbee(*args).exit_code == 2
    assert hive.calls == []


def test_spawn_sends_only_what_was_given(rbee, hive):
    result = rbee("spawn", "example")
    assert hive.bodies("/v1/workers/spawn") == [{"model_ref": "example"}]
    assert result.stdout == "w-new starting http://127.0.0.1:8081\n"


def test_spawn_sends_every_field(rbee, hive):
    flags = [
        "--backend",
        "cpu",
        "--device",
        "0",
        "--alias",
        "a",
        "--ctx-size",
        "512",
        "--slots",
        "2",
        "--engine",
        "synthetic",
    ]
    flags += ["--restart", "never", "--max-memory", "6GiB", "--idle-timeout", "10m"]
    rbee("spawn", "synthetic:x", *flags, "--", "--tokens-per-second", "5")
    assert hive.bodies("/v1/workers/spawn") == [
        {
            "model_ref": "synthetic:x",
            "backend": "cpu",
            "device": 0,
            "alias": "a",
            "ctx_size": 512,
            "slots": 2,
            "engine": "synthetic",
            "restart": "never",
            "max_memory_bytes": 6 * 2**30,
            "idle_timeout": 600.0,
            "engine_args": ["--tokens-per-second", "5"],
        }
    ]


def test_spawn_waits_and_shows_each_state_once(rbee, hive):
    hive.states_of_new = ["starting", "loading", "loading", "idle"]
    result = rbee("spawn", "example", "--wait", "--json")
    assert result.stderr == "w-new loading\nw-new idle\n"
    assert json.loads(result.stdout)["state"] == "idle"


def test_spawn_that_fails_ends_with_the_reason_of_the_worker(rbee, hive):
    hive.states_of_new, hive.message_of_new = ["starting", "failed"], "out of memory"
    result = rbee("spawn", "example", "--wait")
    assert result.exit_code == 1
    assert result.stderr == "Error: w-new failed: out of memory\n"


@pytest.mark.parametrize("name", ["w-1", "chat", "example"])
def test_stop_takes_an_id_an_alias_or_a_model(rbee, hive, worker, name):
    hive.workers = [worker(alias="chat")]
    result = rbee("stop", name, "--wait")
    assert (result.exit_code, result.stdout) == (0, "w-1 stopped\n")
    assert hive.workers == []


def test_stop_all_stops_all_by_force(rbee, hive, worker):
    hive.workers = [worker(), worker(worker_id="w 2/x")]
    assert json.loads(rbee("stop", "all", "--force", "--json").stdout) == {"stopped": ["w-1", "w 2/x"]}
    paths = [path for method, path, _ in hive.calls if method == "DELETE"]
    assert paths == ["/v1/workers/w-1?force=true", "/v1/workers/w%202%2Fx?force=true"]


def test_stop_waits_for_a_failed_worker_too(rbee, hive, worker):
    hive.workers = [worker(state="failed")]
    hive.linger = 2
    assert rbee("stop", "w-1", "--wait").stdout == "w-1 stopped\n"
    assert [method for method, path, _ in hive.calls if path == "/v1/workers/w-1"] == ["DELETE", "GET", "GET", "GET"]


def test_stop_of_all_of_none_is_fine(rbee):
    assert rbee("stop", "all").exit_code == 0


def test_restart_takes_the_same_names_as_stop(rbee, hive, worker):
    hive.workers = [worker()]
    hive.routes["POST", "/v1/workers/w-1/restart"] = (202, worker())
    result = rbee("restart", "w-1")
    assert (result.exit_code, result.stdout) == (0, "w-1 restarting\n")
    assert json.loads(rbee("restart", "all", "--json", "--wait").stdout) == {"restarted": ["w-1"]}
    assert [call[:2] for call in hive.calls].count(("POST", "/v1/workers/w-1/restart")) == 2
    assert "There is no worker 'nix'" in rbee("restart", "nix").stderr


def test_stop_of_an_unknown_worker_names_those_there_are(rbee, hive, worker):
    hive.workers = [worker(alias="chat"), worker(worker_id="w-2")]
    result = rbee("stop", "nix")
    assert result.exit_code == 1
    assert "There are: chat, w-2." in result.stderr


def test_worker_that_is_gone_already_counts_as_stopped(rbee, hive, worker, refusal):
    hive.workers = [worker()]
    hive.routes["DELETE", "/v1/workers/w-1"] = (404, refusal("worker_not_found", "gone"))
    assert rbee("stop", "w-1").exit_code == 0


def test_logs_prints_the_last_lines(rbee, hive, worker):
    hive.workers = [worker(alias="chat")]
    assert rbee("logs", "chat", "-n", "5").stdout == "line 1\nline 2\n"
    assert hive.calls[-1][1] == "/v1/workers/w-1/logs?tail=5"
    assert json.loads(rbee("logs", "chat", "--json").stdout) == {"worker_id": "w-1", "lines": ["line 1", "line 2"]}


def test_logs_follows_events(rbee, hive, worker):
    hive.workers = [worker()]
    assert rbee("logs", "w-1", "-f").stdout == "line 1\nline 2\n"
    lines = rbee("logs", "w-1", "-f", "--json").stdout.splitlines()
    assert json.loads(lines[0]) == {"worker_id": "w-1", "line": "line 1"}


def test_logs_of_an_unknown_worker_prints_the_message_of_the_hive(rbee):
    result = rbee("logs", "nix")
    assert (result.exit_code, result.stderr) == (1, "Error: There is no worker 'nix'.\n")


def test_status_of_a_hive_in_order(rbee, hive, worker):
    hive.workers = [worker(), worker(worker_id="w-2")]
    result = rbee("status")
    assert result.exit_code == 0
    assert result.stdout == f"rbee-hive 0.1.0 at {hive.url}: alive, ready\nworkers: 2 idle\n"


def test_status_names_what_needs_attention(rbee, hive, worker):
    hive.workers = [worker(state="failed", message="out of memory"), worker(worker_id="w-2", state="backoff")]
    result = rbee("status")
    assert "needs attention: w-1 failed: out of memory" in result.stdout
    assert "needs attention: w-2 backoff: no reason was given; see: rbee logs w-2" in result.stdout


def test_status_of_a_hive_that_is_not_ready_exits_one_and_says_why(rbee, hive, refusal):
    hive.routes["GET", "/readyz"] = (503, refusal("shutting_down", "The hive is shutting down."))
    result = rbee("status")
    assert result.exit_code == 1
    assert "alive, The hive is shutting down." in result.stdout
    report = json.loads(rbee("status", "--json").stdout)
    assert (report["ready"], report["workers"], report["attention"]) == (False, {}, [])


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(None, "-"), (0, "0 MiB"), (2**30 - 1, "1024 MiB"), (3 * 2**29, "1.5 GiB")]
)
def test_sizes_are_short(size_bytes, text):
    assert human_size(size_bytes) == text


@pytest.mark.parametrize(("seconds", "text"), [(None, "-"), (0.4, "0s ago"), (59.6, "60s ago"), (600, "10m ago")])
def test_ages_are_short(seconds, text):
    assert human_age(seconds) == text
