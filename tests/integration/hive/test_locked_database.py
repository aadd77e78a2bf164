"""A database that somebody else has locked: what needs it waits, and nothing else does."""

import contextlib
import sqlite3
import threading

from tests.hives import wait_for

SPAWNS = 45
"""More than the 40 threads that anyio lends at once, and for longer than the worker may be silent."""


def test_beats_are_answered_while_every_spawn_waits_for_the_database(start_hive):
    hive = start_hive({"heartbeat.stale_after": "10s"})
    worker_id = hive.ready()["worker_id"]

    def spawn():
        with contextlib.suppress(OSError):
            hive.post("/v1/workers/spawn", {"model_ref": "synthetic:x"})

    spawning = [threading.Thread(target=spawn) for _ in range(SPAWNS)]
    with contextlib.closing(sqlite3.connect(hive.state_dir / "rbee.db", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        for thread in spawning:
            thread.start()
        wait_for(lambda: len(hive.get("/v1/workers").json["workers"]) > 1, "a spawn waits for its row")
        before = len(hive.log("Received heartbeat"))
        wait_for(lambda: len(hive.log("Received heartbeat")) > before + 25, "beats go on")
        db.execute("ROLLBACK")
    stale = [line["worker_id"] for line in hive.log("Worker is stale (no heartbeat in 10s)")]
    assert worker_id not in stale
    assert hive.worker(worker_id)["restart_count"] == 0
    for thread in spawning:
        thread.join(60)
