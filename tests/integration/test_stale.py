"""A worker that is silent is found on its deadline, killed and counted; a hive that was paused kills nobody."""

import os
import signal
import time
from datetime import datetime

from tests.hives import is_alive, wait_for


def test_a_frozen_worker_is_found_stale_killed_and_counted(hive):
    worker = hive.ready(restart="never")
    os.kill(worker["pid"], signal.SIGSTOP)
    failed = hive.wait_state(worker["worker_id"], "failed")
    assert failed["last_exit"] == {
        "reason": "stale",
        "exit_code": None,
        "signal": 9,
        "message": "no heartbeat in 2 s",
    }
    assert "no heartbeat in 2 s" in failed["message"]
    wait_for(lambda: not (is_alive(worker["pid"]) or is_alive(worker["engine_pid"])), "both its processes are gone")
    assert hive.metric("rbee_hive_workers_stale_total") == 1
    assert hive.metric("rbee_hive_worker_exits_total", reason="stale") == 1
    assert hive.metric("rbee_hive_workers_force_killed_total") == 1
    assert hive.metric("rbee_hive_workers_total", state="failed") == 1
    assert [line["worker_id"] for line in hive.log("Worker is stale (no heartbeat in 2s)")] == [worker["worker_id"]]
    assert hive.processes() == []


def test_it_is_not_found_before_its_deadline(start_hive):
    """The log's own times are compared: how late it may be is shown on a jumping clock, and measured in bench/."""
    hive = start_hive({"heartbeat.interval": "1s", "heartbeat.stale_after": "3s"})
    worker = hive.ready(restart="never")
    os.kill(worker["pid"], signal.SIGSTOP)
    hive.wait_state(worker["worker_id"], "failed")
    last_beat = datetime.fromisoformat(hive.log("Received heartbeat")[-1]["timestamp"])
    found = datetime.fromisoformat(hive.log("Worker is stale (no heartbeat in 3s)")[0]["timestamp"])
    assert (found - last_beat).total_seconds() >= 2.99


def test_a_hive_that_was_stopped_for_longer_than_the_deadline_loses_no_worker(hive):
    workers = [hive.ready()["worker_id"] for _ in range(3)]
    beats = len(hive.log("Received heartbeat"))
    hive.signal(signal.SIGSTOP)
    # The only way to let real time pass for a process that is stopped.
    time.sleep(5.0)
    hive.signal(signal.SIGCONT)
    wait_for(lambda: hive.log("hive_was_paused"), "the hive noticed its pause")
    wait_for(lambda: len(hive.log("Received heartbeat")) >= beats + 9, "every worker has beaten again")
    assert [hive.worker(worker_id)["state"] for worker_id in workers] == ["idle"] * 3
    assert hive.metric("rbee_hive_workers_stale_total") == 0


def test_a_worker_that_never_calls_back_is_stale_too(start_hive, tmp_path):
    hive = start_hive({"heartbeat.interval": "1s", "heartbeat.stale_after": "2s"})
    worker_id = hive.spawn(restart="never")
    pid = wait_for(lambda: hive.worker(worker_id)["pid"], "it has a process")
    os.kill(pid, signal.SIGSTOP)
    failed = hive.wait_state(worker_id, "failed")
    assert failed["last_exit"]["reason"] == "stale"
