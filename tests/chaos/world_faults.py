"""Faults of what is round the hive: its disk is full, its clock jumps, its descriptors or its database are taken."""

import contextlib
import errno
import http.client
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.catalog import fault
from tests.chaos.stage import STALE_AFTER, Stage, Violated
from tests.hives import Answer, is_alive, wait_for

HOUR = 3600
DESCRIPTORS = 128
"""For a hive with three workers that uses about 40 at rest."""
SPAWNS_WHILE_LOCKED = 8


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[None]:
    """The file system of *folder* without a byte left, as long as this holds."""
    ballast = folder / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            for block in (bytes(65536), bytes(512), b"\0"):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(block)
        if not _is_full(folder):
            raise Violated(f"{folder} could not be filled")
        yield
    finally:
        ballast.unlink()


def _is_full(folder: Path) -> bool:
    probe = folder / "probe"
    try:
        probe.write_bytes(bytes(65536))
    except OSError as error:
        return error.errno == errno.ENOSPC
    finally:
        probe.unlink(missing_ok=True)
    return False


@fault("disk full for logs and database", weight=2, needs=("small disk",))
def fill_disk(stage: Stage) -> None:
    """A disk without room stops neither the hive nor those that serve, and what ended meanwhile comes back."""
    old = stage.victim()
    others = [worker_id for worker_id in stage.residents if worker_id != old["worker_id"]]
    before = {worker_id: stage.hive.worker(worker_id)["pid"] for worker_id in others}
    with filled(stage.hive.state_dir):
        stage.injected()
        os.kill(old["pid"], signal.SIGKILL)
        wait_for(lambda: not is_alive(old["engine_pid"]), "the engine of the killed keeper is gone")
        refused = stage.hive.post("/v1/workers/spawn", {"model_ref": f"synthetic:{stage.new_name()}"})
        if refused.status == 200:
            stage.dismiss(refused.json["worker_id"], force=True)
        elif "error" not in refused.json:
            raise Violated(f"on a full disk a spawn was answered with {refused.status}: {refused.body!r}")
        if stage.hive.get("/livez").status != 200:
            raise Violated("the hive does not live on a full disk")
    if now := {w: stage.hive.worker(w)["pid"] for w in others if stage.hive.worker(w)["pid"] != before[w]}:
        raise Violated(f"a full disk ended workers that nobody killed: {before} became {now}")
    if stage.hive.worker(old["worker_id"])["state"] == "failed":
        stage.hive.post(f"/v1/workers/{old['worker_id']}/restart", {})
    stage.wait_replaced(old)


@fault("wall clock jumps an hour ahead", weight=1, needs=("wall clock",))
def clock_ahead(stage: Stage) -> None:
    """No deadline hangs on the wall clock, which may jump ahead."""
    _jump(stage, HOUR)


@fault("wall clock jumps an hour back", weight=1, needs=("wall clock",))
def clock_back(stage: Stage) -> None:
    """No deadline hangs on the wall clock, which may jump back."""
    _jump(stage, -HOUR)


def _jump(stage: Stage, seconds: int) -> None:
    """One worker falls silent right before the jump, so that its deadline lies beyond it."""
    assert stage.clock is not None
    before = stage.identities()
    mark = len(stage.story.steps)
    old = stage.victim()
    silent = old["worker_id"]
    os.kill(old["pid"], signal.SIGSTOP)
    stage.injected()
    stage.clock.move_to(seconds)
    try:
        stage.wait_replaced(old)
        moment = time.monotonic()
        for worker_id in stage.residents:
            stage.wait_beat_after({"worker_id": worker_id}, moment)
        told = {step.worker_id for step in stage.story.steps[mark:] if step.event == "WentStale"}
        now = stage.identities()
        if told != {silent} or any(now[w] != before[w] for w in now if w != silent):
            raise Violated(f"{silent} alone was silent, stale became {told}; {before} became {now}")
    finally:
        stage.clock.move_to(0)


@contextlib.contextmanager
def idle_clients(stage: Stage, count: int) -> Iterator[None]:
    """So many connections of another process to the hive, as long as this holds."""
    program = [sys.executable, str(Path(__file__).with_name("idle_clients.py"))]
    process = subprocess.Popen(
        [*program, stage.hive.host, str(stage.hive.port), str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdout.readline()
        yield
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


def _nobody_was_ended(stage: Stage, before: dict[str, tuple[int, int, int]], mark: int) -> None:
    stage.same_residents(before)
    steps = [step for step in stage.story.steps[mark:] if step.worker_id in before]
    if ends := [step for step in steps if step.after in ("draining", "stopping", "backoff", "failed", "gone")]:
        raise Violated(f"residents were ended, or were to be: {ends}")
    if silent := [step for step in stage.story.steps[mark:] if step.event == "WentStale"]:
        raise Violated(f"for the silence of the hive itself, workers were called silent: {silent}")


@fault("descriptors exhausted", weight=1)
def exhaust_descriptors(stage: Stage) -> None:
    """Nobody is silent because the hive has no descriptor left to hear him with."""
    before = stage.identities()
    stage.traffic.pause()
    with stage.hive_gap():
        stage.kill_hive()
        stage.start_hive(descriptors=DESCRIPTORS)
    for worker_id in stage.residents:
        stage.wait_serving(worker_id)
    mark = len(stage.story.steps)
    stage.injected()
    with idle_clients(stage, 2 * DESCRIPTORS):
        stage.let_pass(STALE_AFTER * 1.5)
    moment = time.monotonic()
    wait_for(lambda: _is_ready(stage), "the hive answers again when the idle clients have left", 15)
    for worker_id in stage.residents:
        stage.wait_beat_after({"worker_id": worker_id}, moment)
    _nobody_was_ended(stage, before, mark)
    with stage.hive_gap():
        stage.kill_hive()
        stage.start_hive()
    stage.same_residents(before)


def _is_ready(stage: Stage) -> bool:
    try:
        return stage.hive.get("/readyz", timeout=2.0).status == 200
    except (OSError, http.client.HTTPException):
        return False


@fault("database locked by another for longer than stale_after", weight=1)
def lock_database(stage: Stage) -> None:
    """Whoever holds the database holds up no beat, and what was asked for meanwhile is done in the end."""
    before = stage.identities()
    guests = [stage.hive.spawn(f"synthetic:{stage.new_name()}") for _ in range(3)]
    for worker_id in guests:
        stage.wait_serving(worker_id)
    models = [f"synthetic:{stage.new_name()}" for _ in range(SPAWNS_WHILE_LOCKED)]
    asked = [("POST", "/v1/workers/spawn", {"model_ref": model}) for model in models]
    asked += [("DELETE", f"/v1/workers/{worker_id}", None) for worker_id in guests]
    answers: list[Answer] = []
    mark = len(stage.story.steps)
    stage.injected()
    with _locked(stage.hive.state_dir / "rbee.db"):
        threads = [threading.Thread(target=lambda one: answers.append(stage.hive.call(*one)), args=(a,)) for a in asked]
        for thread in threads:
            thread.start()
        stage.let_pass(STALE_AFTER * stage.rng.choice((1.0, 2.5)))
        moment = time.monotonic()
        for worker_id in stage.residents:
            stage.wait_beat_after({"worker_id": worker_id}, moment)
        stage.let_pass(STALE_AFTER / 2)
    for thread in threads:
        thread.join()
    _check_answers(answers, len(asked))
    _nobody_was_ended(stage, before, mark)


def _check_answers(answers: list[Answer], count: int) -> None:
    """What could not be written down may be refused, in our words; all else is done, or will be."""
    wrong = [a for a in answers if a.status not in (200, 202) and (a.status < 500 or "error" not in a.json)]
    if wrong or len(answers) != count:
        raise Violated(f"while the database was locked, {count} asked and {len(answers)} were answered: {wrong}")


@contextlib.contextmanager
def _locked(database: Path) -> Iterator[None]:
    """Nobody else can write to it, as long as this holds."""
    connection = sqlite3.connect(database, isolation_level=None, timeout=10)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()
