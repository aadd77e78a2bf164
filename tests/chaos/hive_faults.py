"""Faults of the hive itself: killed, stopped, ended at the wrong moment, started on what was left."""

import http.client
import os
import signal
import threading
import time

from tests.chaos.catalog import fault
from tests.chaos.clients import Wish
from tests.chaos.stage import STALE_AFTER, Stage, Violated
from tests.hives import wait_for

STREAM_TOKENS = 400
"""1.6 s at 250 a second: longer than a hive takes to see a signal, shorter than it lets requests end."""


@fault("hive killed", weight=4)
def kill_hive(stage: Stage) -> None:
    """The next hive keeps the workers: same process, same incarnation, model in memory."""
    before = stage.identities()
    stage.injected()
    with stage.hive_gap():
        stage.kill_hive()
        stage.start_hive()
    stage.same_residents(before)


@fault("hive killed during a spawn", weight=4)
def kill_hive_during_spawn(stage: Stage) -> None:
    """No process is unknown to the next hive, wherever between row, fork and pid the last one died."""
    before = stage.identities()
    spawning = threading.Thread(target=_spawn_unheard, args=(stage, stage.odd_model()), daemon=True)
    with stage.hive_gap():
        spawning.start()
        stage.let_pass(stage.rng.uniform(0.0, 0.08))
        stage.injected()
        stage.kill_hive()
        spawning.join()
        stage.start_hive()
    stage.same_residents(before)


def _spawn_unheard(stage: Stage, model: str) -> None:
    try:
        stage.hive.post("/v1/workers/spawn", {"model_ref": model, "engine": "odd"})
    except (OSError, http.client.HTTPException):
        return  # the hive was killed before it answered: that is the fault


@fault("worker killed while no hive runs")
def kill_worker_without_hive(stage: Stage) -> None:
    """What died unseen is replaced by the next hive."""
    old = stage.victim()
    with stage.hive_gap():
        stage.kill_hive()
        stage.injected()
        os.kill(old["pid"], signal.SIGKILL)
        stage.start_hive()
    stage.wait_replaced(old)


@fault("hive stopped for one and a half times stale_after", weight=2)
def stop_hive_for_long(stage: Stage) -> None:
    """Time in which the hive itself did not run counts for nobody."""
    before = stage.identities()
    stage.injected()
    stage.hive.signal(signal.SIGSTOP)
    stage.let_pass(STALE_AFTER * 1.5)
    moment = time.monotonic()
    stage.hive.signal(signal.SIGCONT)
    for worker_id in stage.residents:
        stage.wait_beat_after({"worker_id": worker_id}, moment)
    stage.same_residents(before)


def _end_hive(stage: Stage) -> None:
    """After an end that was asked for: the exit code is 0, and nothing is left."""
    assert stage.hive.process is not None
    code = stage.hive.process.wait(60)
    if code != 0:
        raise Violated(f"the hive ended with exit code {code} after SIGTERM")
    if left := stage.hive.processes():
        raise Violated(f"the hive ended and left the processes {left}")


def _next_hive_starts_afresh(stage: Stage) -> None:
    stage.start_hive()
    stage.residents.clear()
    if listed := stage.listed():
        raise Violated(f"the last hive ended all its workers, the next one lists {listed}")
    stage.populate()


@fault("SIGTERM to the hive while it starts", weight=2)
def term_during_start(stage: Stage) -> None:
    """A hive that is ended while it starts leaves nothing, or touches nothing."""
    with stage.hive_gap():
        stage.kill_hive()
        stage.story.new_hive()
        stage.hive.launch()
        stage.let_pass(stage.rng.uniform(0.0, 1.2))
        stage.injected()
        stage.hive.signal(signal.SIGTERM)
        assert stage.hive.process is not None
        code = stage.hive.process.wait(60)
        if code == 0 and (left := stage.hive.processes()):
            raise Violated(f"the hive ended while it started, and left the processes {left}")
        if code not in (0, -signal.SIGTERM):
            raise Violated(f"the hive ended with exit code {code} after SIGTERM while it started")
        stage.start_hive()
        if code == 0:
            stage.residents.clear()
    if not stage.residents:
        stage.populate()


@fault("SIGTERM to the hive during a drain", weight=2)
def term_during_drain(stage: Stage) -> None:
    """The end of the hive lets requests end, and leaves no process."""
    stage.traffic.pause()
    worker_id, model = next(iter(stage.residents.items()))
    asking = stage.traffic.begin(Wish(model, stream=True, tokens=STREAM_TOKENS))
    asking.wait_first()
    stage.hive.call("DELETE", f"/v1/workers/{worker_id}")
    stage.injected()
    with stage.hive_gap():
        stage.hive.signal(signal.SIGTERM)
        outcome = asking.wait()
        _end_hive(stage)
        _next_hive_starts_afresh(stage)
    if outcome.kind != "answered":
        raise Violated(f"the hive was ended while it drained, and a request did not complete: {outcome}")


@fault("hive ended with on_shutdown = leave", weight=2)
def leave(stage: Stage) -> None:
    """Workers that are left on purpose are found by the next hive as they were."""
    before = stage.identities()
    with stage.hive_gap():
        stage.kill_hive()
        stage.start_hive({"lifecycle.on_shutdown": "leave"})
        stage.injected()
        code = stage.hive.stop()
        if code != 0:
            raise Violated(f"a hive that leaves its workers ended with exit code {code}")
        if not stage.hive.processes():
            raise Violated("no process is left, although the workers were to be")
        stage.start_hive()
    stage.same_residents(before)


@fault("database damaged while no hive runs", weight=2)
def damage_database(stage: Stage) -> None:
    """A hive without its database starts with what the live workers announce."""
    before = stage.identities()
    with stage.hive_gap():
        stage.kill_hive()
        # The log beside it alone would bring all of it back.
        for name in ("rbee.db", "rbee.db-wal"):
            (stage.hive.state_dir / name).write_bytes(b"this was a database" * 500)
        stage.injected()
        stage.start_hive()
        for worker_id in stage.residents:
            stage.wait_serving(worker_id)
    stage.same_residents(before)
    kept = [path.name for path in stage.hive.state_dir.iterdir() if "unreadable" in path.name]
    if not kept:
        raise Violated("the damaged database was not kept aside")


@fault("fifty spawns and deletes at once", weight=1)
def crowd(stage: Stage, count: int = 50) -> None:
    """However many come and go at once, none is forgotten."""
    models = [f"synthetic:{stage.new_name()}" for _ in range(count)]
    choices = [(model, stage.rng.random() < 0.5, stage.rng.uniform(0, 1.0)) for model in models]
    problems: list[str] = []
    stage.injected()
    threads = [threading.Thread(target=_come_and_go, args=(stage, *choice, problems)) for choice in choices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise Violated("; ".join(problems[:5]))
    wait_for(lambda: len(stage.listed()) == len(stage.residents), "all that came have gone")


def _come_and_go(stage: Stage, model: str, force: bool, stay: float, problems: list[str]) -> None:
    answer = stage.hive.post("/v1/workers/spawn", {"model_ref": model, "engine_args": []})
    if answer.status != 200:
        problems.append(f"a spawn was answered with {answer.status}: {answer.body!r}")
        return
    time.sleep(stay)
    worker_id = answer.json["worker_id"]
    ended = stage.hive.call("DELETE", f"/v1/workers/{worker_id}{'?force=true' if force else ''}")
    if ended.status != 202:
        problems.append(f"a delete was answered with {ended.status}: {ended.body!r}")
