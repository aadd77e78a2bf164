"""Whole lives of workers, with the synthetic engine."""

import json
import os
import signal
import statistics
import threading
from datetime import UTC, datetime

from tests.hives import is_alive, wait_for

CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}


def test_a_full_life(hive):
    worker_id = hive.spawn(alias="chat", slots=2)
    answer = hive.post("/v1/chat/completions", {"model": "chat", **CHAT})
    assert answer.status == 200
    assert answer.headers["x-rbee-worker"] == worker_id
    assert answer.json["usage"]["completion_tokens"] == 8
    worker = hive.worker(worker_id)
    assert (worker["state"], worker["slots"], worker["alias"], worker["message"]) == ("idle", 2, "chat", "Ready.")
    assert {model["id"] for model in hive.get("/v1/models").json["data"]} == {"chat", "synthetic:x"}
    assert hive.metric("rbee_hive_inference_requests_total", model="synthetic:x", status="200") == 1
    assert hive.metric("rbee_hive_inference_tokens_total", kind="generated") == 8
    assert hive.call("DELETE", f"/v1/workers/{worker_id}").status == 202
    hive.wait_state(worker_id, "gone")
    wait_for(lambda: not hive.processes(), "its processes are gone")
    assert hive.metric("rbee_hive_worker_exits_total", reason="stopped") == 1
    assert hive.metric("rbee_hive_workers_graceful_shutdown_total") == 1
    wait_for(lambda: not any((hive.state_dir / "workers").iterdir()), "its logs are gone")
    answer = hive.post("/v1/chat/completions", {"model": "chat", **CHAT})
    assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found")


def test_a_request_that_runs_is_answered_before_its_worker_ends(hive):
    worker_id = hive.ready(engine_args=["--tokens-per-second", "20"])["worker_id"]
    answers = []
    body = {"model": worker_id, **CHAT, "max_tokens": 20}
    asking = threading.Thread(target=lambda: answers.append(hive.post("/v1/chat/completions", body)))
    asking.start()
    hive.wait_state(worker_id, "busy")
    hive.call("DELETE", f"/v1/workers/{worker_id}")
    assert hive.worker(worker_id)["state"] == "draining"
    asking.join()
    assert answers[0].status == 200
    assert answers[0].json["usage"]["completion_tokens"] == 20
    hive.wait_state(worker_id, "gone")


def test_a_killed_keeper_takes_its_engine_with_it_and_says_how_it_ended(hive):
    worker = hive.ready(restart="never")
    os.kill(worker["pid"], signal.SIGKILL)
    failed = hive.wait_state(worker["worker_id"], "failed")
    assert failed["last_exit"]["reason"] == "crashed"
    assert failed["last_exit"]["signal"] == 9
    wait_for(lambda: not is_alive(worker["engine_pid"]), "its engine is gone")
    answer = hive.post("/v1/chat/completions", {"model": worker["worker_id"], **CHAT})
    assert (answer.status, answer.json["error"]["code"]) == (503, "no_ready_worker")
    assert "SIGKILL" in answer.json["error"]["message"]


def test_a_killed_engine_ends_its_worker_with_the_reason(hive):
    worker = hive.ready(restart="never")
    os.kill(worker["engine_pid"], signal.SIGKILL)
    failed = hive.wait_state(worker["worker_id"], "failed")
    assert "SIGKILL" in failed["message"]
    assert failed["last_exit"]["reason"] == "crashed"


def test_after_a_death_the_other_worker_of_the_model_answers(hive):
    first, second = hive.ready(restart="never"), hive.ready()
    os.kill(first["pid"], signal.SIGKILL)
    for _ in range(10):
        answer = hive.post("/v1/chat/completions", {"model": "synthetic:x", **CHAT})
        assert answer.status == 200
    hive.wait_state(first["worker_id"], "failed")
    assert (
        hive.post("/v1/chat/completions", {"model": "synthetic:x", **CHAT}).headers["x-rbee-worker"]
        == second["worker_id"]
    )


def test_a_killed_worker_is_out_of_routing_within_50_ms(hive):
    """By the journal's own time; the median of nine, so that one late wake-up of this machine means nothing."""
    delays = []
    for number, part in enumerate(("pid", "engine_pid", "pid") * 3):
        # A model each: five failures of one would open its circuit.
        worker = hive.ready(f"synthetic:{number}", restart="never")
        killed = datetime.now(UTC)
        os.kill(worker[part], signal.SIGKILL)
        hive.wait_state(worker["worker_id"], "failed")
        with hive.stream("/v1/events", {"last-event-id": "0"}) as lines:
            entries = (json.loads(line[5:]) for line in lines if line.startswith(b"data:"))
            left = next(
                e for e in entries if e["worker_id"] == worker["worker_id"] and e["before"] == "ready" != e["after"]
            )
        delays.append((datetime.fromisoformat(left["at"]) - killed).total_seconds())
    assert statistics.median(delays) <= 0.05


def test_a_restart_by_hand_is_another_process_of_the_same_worker(hive):
    worker = hive.ready()
    assert hive.post(f"/v1/workers/{worker['worker_id']}/restart", None).status == 202
    again = wait_for(
        lambda: (w := hive.worker(worker["worker_id"]))["incarnation"] == 2 and w["state"] == "idle" and w,
        "the second incarnation is ready",
    )
    assert again["pid"] != worker["pid"]
    assert again["restart_count"] == 1
    assert hive.metric("rbee_hive_workers_restart_count") == 1
    assert not is_alive(worker["engine_pid"])


def test_a_load_that_fails_says_what_the_engine_said(hive):
    worker_id = hive.spawn(engine_args=["--fail-load", "the tensor is upside down"], restart="never")
    failed = hive.wait_state(worker_id, "failed")
    assert "the tensor is upside down" in failed["message"]
    assert hive.call("DELETE", f"/v1/workers/{worker_id}").status == 202
    hive.wait_state(worker_id, "gone")


def test_the_events_tell_a_life_in_order_and_can_be_read_again(hive):
    worker_id = hive.ready()["worker_id"]
    hive.call("DELETE", f"/v1/workers/{worker_id}")
    hive.wait_state(worker_id, "gone")
    with hive.stream("/v1/events", {"last-event-id": "0"}) as lines:
        seen = []
        for line in lines:
            if line.startswith(b"data:"):
                seen.append(json.loads(line[5:]))
                if seen[-1]["after"] == "gone":
                    break
    assert [entry["number"] for entry in seen] == list(range(1, len(seen) + 1))
    changes = [entry["after"] for entry in seen if entry["before"] != entry["after"]]
    assert changes == ["loading", "ready", "draining", "stopping", "gone"]
    assert seen[-1]["exit_reason"] == "stopped"


def test_logs_can_be_read_and_followed(hive):
    worker_id = hive.ready()["worker_id"]
    answer = hive.get(f"/v1/workers/{worker_id}/logs?tail=1")
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.body.count(b"\n") == 1
    with hive.stream(f"/v1/workers/{worker_id}/logs?tail=0&follow=true") as lines:
        assert b"Heartbeat sent successfully" in next(line for line in lines if line.startswith(b"data:"))
    assert hive.get("/v1/workers/w-nobody/logs").status == 404
    assert hive.get(f"/v1/workers/{worker_id}/logs?tail=-1").status == 422


def test_a_client_that_leaves_frees_its_slot(hive):
    worker = hive.ready(engine_args=["--tokens-per-second", "5"])
    body = {"model": worker["worker_id"], **CHAT, "max_tokens": 500, "stream": True}
    with hive.stream("/v1/chat/completions", body=body) as lines:
        next(iter(lines))
        assert hive.worker(worker["worker_id"])["in_flight"] == 1
    wait_for(lambda: hive.worker(worker["worker_id"])["in_flight"] == 0, "the gateway counts it no more")
    wait_for(lambda: hive.worker(worker["worker_id"])["telemetry"]["slots_busy"] == 0, "the engine is idle again")
    assert hive.metric("rbee_hive_inference_requests_total", status="499") == 1


def test_many_workers_start_and_end_at_once(hive):
    workers = [hive.spawn() for _ in range(10)]
    for worker_id in workers:
        hive.wait_state(worker_id, "idle")
    assert len({hive.worker(worker_id)["url"] for worker_id in workers}) == 10
    for worker_id in workers:
        hive.call("DELETE", f"/v1/workers/{worker_id}")
    wait_for(lambda: not hive.get("/v1/workers").json["workers"], "all are gone")
    wait_for(lambda: not hive.processes(), "and so are their processes")
