"""Heartbeats, as the original's pending test asks for them: sent, received, answered, and refused to strangers."""

from datetime import UTC, datetime

from rbee.core import auth
from tests.hives import wait_for


def beat(worker_id, **changes):
    return {"worker_id": worker_id, "timestamp": datetime.now(UTC).isoformat(), "health_status": "healthy", **changes}


def token(hive, worker_id, incarnation=1):
    return auth.worker_token((hive.state_dir / "secret").read_bytes(), worker_id, incarnation)


def test_beats_are_sent_received_and_shown(hive):
    worker = hive.ready()
    worker_id = worker["worker_id"]
    received = wait_for(
        lambda: len(lines := hive.log("Received heartbeat")) >= 3 and lines, "three beats have been received"
    )
    assert {line["worker_id"] for line in received} == {worker_id}
    assert all(line["level"] == "info" for line in received)
    log = hive.get(f"/v1/workers/{worker_id}/logs").body.decode()
    assert "Heartbeat sent successfully" in log
    seen = hive.worker(worker_id)
    assert seen["last_heartbeat_age_seconds"] < 2
    assert seen["memory"]["rss_bytes"] > 2**20
    assert seen["telemetry"]["slots_total"] == seen["slots"] == 4


def test_beats_go_on_while_the_model_loads(hive):
    worker_id = hive.spawn(engine_args=["--load-seconds", "4"])
    wait_for(lambda: len(hive.log("Received heartbeat")) >= 4, "beats of a loading worker")
    assert hive.worker(worker_id)["state"] == "loading"
    assert hive.wait_state(worker_id, "idle")["restart_count"] == 0


def test_the_answer_to_a_beat_tells_how_long_the_worker_may_live_alone(hive):
    worker_id = hive.ready()["worker_id"]
    answer = hive.post("/v1/heartbeat", beat(worker_id, incarnation=1), token=token(hive, worker_id))
    assert (answer.status, answer.json) == (200, {"message": "Heartbeat received", "orphan_timeout": 300.0})


def test_a_beat_for_an_unknown_worker_is_not_found(hive):
    answer = hive.post("/v1/heartbeat", beat("w-nobody"))
    assert (answer.status, answer.code) == (404, "worker_not_found")


def test_a_beat_needs_the_workers_own_token_even_where_nobody_else_needs_one(hive):
    first, second = hive.ready()["worker_id"], hive.ready()["worker_id"]
    assert hive.post("/v1/heartbeat", beat(first)).status == 403
    assert hive.post("/v1/heartbeat", beat(first), token="sk-anything").status == 403
    assert hive.post("/v1/heartbeat", beat(first), token=token(hive, second)).status == 403
    forged = token(hive, first)[:-1] + "x"
    assert hive.post("/v1/heartbeat", beat(first), token=forged).status == 401


def test_a_beat_of_another_incarnation_is_refused_and_changes_nothing(hive):
    worker_id = hive.ready()["worker_id"]
    answer = hive.post("/v1/heartbeat", beat(worker_id, incarnation=0), token=token(hive, worker_id))
    assert (answer.status, answer.code) == (409, "older_incarnation")
    old = token(hive, worker_id, 0)
    assert hive.post("/v1/heartbeat", beat(worker_id), token=old).status == 409
    assert hive.worker(worker_id)["state"] == "idle"
