"""A hive that dies, is stopped or loses its database, and what the next one finds."""

import contextlib
import json
import os
import signal
import sqlite3
import threading

import pytest

from tests.hives import QUICK, Hive, is_alive, wait_for

CHAT = {"messages": [{"role": "user", "content": "one two three"}], "max_tokens": 3}


@pytest.fixture
def next_hive(start_hive):
    """Ends a hive by a signal and starts another one in its place, with the same port and state directory."""

    def start(first: Hive, settings: dict[str, str] | None = None, number: int = signal.SIGKILL, **options) -> Hive:
        wait_for(lambda: all_written_down(first), "the rows show what is ready")
        first.signal(number)
        first.process.wait(60)
        if (while_down := options.pop("while_down", None)) is not None:
            while_down()
        return start_hive({**(settings or {})}, port=first.port, **options)

    return start


def all_written_down(hive: Hive) -> bool:
    """Whether the database shows where each ready worker serves: it is written a moment after it is known."""
    ready = {w["worker_id"] for w in hive.get("/v1/workers").json["workers"] if w["state"] in ("idle", "busy")}
    database = sqlite3.connect(f"file:{hive.state_dir}/rbee.db?mode=ro", uri=True)
    with contextlib.closing(database):
        return ready <= {row[0] for row in database.execute("SELECT worker_id FROM workers WHERE url != ''")}


def lives(worker: dict) -> bool:
    return is_alive(worker["pid"]) and is_alive(worker["engine_pid"])


def same(hive: Hive, worker: dict) -> dict:
    """The worker as this hive sees it once it is ready; it is the very same process."""
    found = hive.wait_state(worker["worker_id"], "idle", "busy")
    for name in ("pid", "engine_pid", "incarnation", "url"):
        assert found[name] == worker[name]
    return found


def test_the_next_hive_takes_over_the_workers_of_one_that_was_killed(start_hive, next_hive):
    first = start_hive()
    workers = [first.ready(), first.ready("synthetic:y", alias="why")]
    second = next_hive(first)
    for worker in workers:
        # Readiness is not said before each of them is known again, so nothing has to be waited for.
        assert second.worker(worker["worker_id"])["state"] == "idle"
        assert same(second, worker)["started_at"] == worker["started_at"]
    answer = second.post("/v1/chat/completions", {"model": "why", **CHAT})
    assert (answer.status, answer.headers["x-rbee-worker"]) == (200, workers[1]["worker_id"])
    second.call("DELETE", f"/v1/workers/{workers[0]['worker_id']}")
    second.wait_state(workers[0]["worker_id"], "gone")
    assert not lives(workers[0])
    assert second.stop() == 0
    assert second.processes() == []


def test_requests_to_the_next_hive_find_the_same_worker_and_those_of_the_first_end(start_hive, next_hive):
    first = start_hive()
    worker = first.ready(engine_args=["--tokens-per-second", "5"])
    body = {"model": "synthetic:x", **CHAT, "max_tokens": 1000, "stream": True}
    ended = threading.Event()

    def read_to_the_end() -> None:
        try:
            with first.stream("/v1/chat/completions", body=body) as lines:
                started.set()
                for _ in lines:
                    pass
        except OSError:
            pass
        ended.set()

    started = threading.Event()
    reading = threading.Thread(target=read_to_the_end)
    reading.start()
    assert started.wait(30)
    second = next_hive(first)
    assert ended.wait(30)
    reading.join()
    answer = second.post("/v1/chat/completions", {"model": "synthetic:x", **CHAT})
    assert answer.headers["x-rbee-worker"] == worker["worker_id"]
    same(second, worker)


def test_a_request_that_comes_before_the_workers_are_known_waits_for_them(start_hive, next_hive):
    first = start_hive()
    worker = first.ready()
    os.kill(worker["engine_pid"], signal.SIGSTOP)
    wait_for(lambda: all_written_down(first), "the row shows where it serves")
    first.signal(signal.SIGKILL)
    first.process.wait(30)
    second = Hive(first.state_dir, {**QUICK, "heartbeat.stale_after": "60s"}, port=first.port)
    try:
        second.launch()
        wait_for(second.listening, "the second hive listens")
        assert second.get("/readyz").status == 503
        answers: list = []
        asking = threading.Thread(
            target=lambda: answers.append(second.post("/v1/chat/completions", {"model": "synthetic:x", **CHAT}))
        )
        asking.start()
        wait_for(lambda: second.get("/metrics").status == 200, "the control API answers")
        wait_for(lambda: second.metric("rbee_hive_queue_depth") == 1, "the request waits")
        os.kill(worker["engine_pid"], signal.SIGCONT)
        asking.join(60)
        assert (answers[0].status, answers[0].headers["x-rbee-worker"]) == (200, worker["worker_id"])
    finally:
        second.end()


def test_a_worker_that_dies_while_no_hive_runs_is_restarted_and_nothing_of_it_is_left(start_hive, next_hive):
    first = start_hive()
    worker = first.ready()
    second = next_hive(first, {"restart.base_delay": "0.1s"}, while_down=lambda: os.kill(worker["pid"], signal.SIGKILL))
    again = wait_for(
        lambda: (seen := second.worker(worker["worker_id"]))["state"] == "idle" and seen, "its next life is ready"
    )
    assert (again["incarnation"], again["last_exit"]["message"]) == (2, "it ended while no hive ran")
    assert not lives(worker)


def test_an_engine_that_dies_while_no_hive_runs_leaves_its_reason(start_hive, next_hive):
    first = start_hive()
    worker = first.ready()

    def kill_and_wait() -> None:
        os.kill(worker["engine_pid"], signal.SIGKILL)
        wait_for(lambda: not is_alive(worker["pid"]), "its keeper has left word and ended")

    second = next_hive(first, while_down=kill_and_wait)
    assert second.worker(worker["worker_id"])["last_exit"]["signal"] == signal.SIGKILL
    assert "SIGKILL" in second.worker(worker["worker_id"])["last_exit"]["message"]


def test_a_frozen_worker_cannot_be_taken_over_and_is_ended(start_hive, next_hive):
    first = start_hive()
    worker = first.ready(restart="never")
    settings = {"monitor.health_timeout": "0.5s", "lifecycle.term_grace": "0.5s"}

    def freeze() -> None:
        os.kill(worker["pid"], signal.SIGSTOP)
        os.kill(worker["engine_pid"], signal.SIGSTOP)

    second = next_hive(first, settings, while_down=freeze)
    failed = second.wait_state(worker["worker_id"], "failed")
    assert "did not answer to its key" in failed["message"]
    assert not lives(worker)


def test_a_worker_that_loads_while_the_hive_is_killed_becomes_ready_under_the_next(start_hive, next_hive):
    first = start_hive()
    worker_id = first.spawn(engine_args=["--load-seconds", "3"])
    loading = first.wait_state(worker_id, "loading")
    second = next_hive(first)
    ready = second.wait_state(worker_id, "idle")
    assert (ready["pid"], ready["incarnation"]) == (loading["pid"], 1)


@pytest.mark.parametrize("newer", [False, True], ids=["garbage", "newer"])
def test_a_database_that_cannot_be_read_is_kept_aside_and_the_workers_announce_themselves(start_hive, next_hive, newer):
    first = start_hive()
    worker = first.ready(ctx_size=2048, idle_timeout=600.0, engine_args=["--tokens-per-second", "50"])
    database = first.state_dir / "rbee.db"

    def damage() -> None:
        if newer:
            with sqlite3.connect(database) as connection:
                connection.execute("PRAGMA user_version = 99")
            connection.close()
        else:
            # All that was written lately is in the -wal alone.
            for path in (database, database.with_name("rbee.db-wal")):
                path.write_bytes(b"this is no database" * 1000)

    second = next_hive(first, while_down=damage)
    (said,) = second.log("database_set_aside")
    assert "rbee.db" in said["path"]
    assert "rbee.db" in said["reason"]
    assert os.path.exists(said["path"])
    found = same(second, worker)
    assert (found["ctx_size"], found["idle_timeout"], found["restart"]) == (2048, 600.0, "on_failure")
    assert found["engine_args"] == ["--tokens-per-second", "50"]
    os.kill(found["pid"], signal.SIGKILL)
    wait_for(lambda: second.worker(worker["worker_id"])["incarnation"] == 2, "it is restarted like any other")


def test_workers_that_are_left_are_taken_over_by_the_next_hive(start_hive, next_hive):
    leave = {"lifecycle.on_shutdown": "leave"}
    first = start_hive(leave)
    worker = first.ready()
    second = next_hive(first, leave, number=signal.SIGTERM)
    assert first.process.returncode == 0
    assert [line["worker_id"] for line in first.log("worker_left_running")] == [worker["worker_id"]]
    same(second, worker)
    third = next_hive(second, number=signal.SIGINT)
    same(third, worker)
    assert third.stop() == 0
    assert not lives(worker)


def test_a_worker_without_a_hive_ends_itself_after_its_time(start_hive):
    first = start_hive({"lifecycle.orphan_timeout": "1s"})
    worker = first.ready()
    first.signal(signal.SIGKILL)
    first.process.wait(30)
    wait_for(lambda: not (is_alive(worker["pid"]) or is_alive(worker["engine_pid"])), "both have ended themselves")
    left = json.loads((first.state_dir / "workers" / worker["worker_id"] / "1.exit.json").read_text())
    assert left["reason"] == "orphaned"


def test_a_worker_that_is_left_outlives_the_time_of_an_orphan(start_hive, next_hive):
    first = start_hive({"lifecycle.on_shutdown": "leave", "lifecycle.orphan_timeout": "1s"})
    worker = first.ready()
    folder = first.state_dir / "workers" / worker["worker_id"]

    def wait_for_failed_beats() -> None:
        failed = "Failed to send heartbeat (will retry)"
        wait_for(lambda: (folder / "1.log").read_text().count(failed) >= 4, "it has missed its hive for a while")

    second = next_hive(first, number=signal.SIGTERM, while_down=wait_for_failed_beats)
    same(second, worker)


def test_a_hive_that_is_killed_again_and_again_loses_no_worker(start_hive, next_hive):
    hive = start_hive()
    worker = hive.ready()
    for _ in range(3):
        hive = next_hive(hive)
        same(hive, worker)
    assert hive.metric("rbee_hive_illegal_events_total") == 0
