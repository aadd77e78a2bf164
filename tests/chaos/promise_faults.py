"""Faults after a promise: what a hive has answered, or was told before it ended, holds for the next one too."""

import signal
import time
from collections.abc import Callable
from typing import Any

from tests.chaos.catalog import fault
from tests.chaos.clients import Wish
from tests.chaos.machine import described, worker_processes
from tests.chaos.stage import STALE_AFTER, Stage, Violated
from tests.hives import is_alive, wait_for

LEAVE = {"lifecycle.on_shutdown": "leave"}
LONG_STREAM = 4000
"""Tokens; 16 s at 250 a second, which is longer than any drain may take."""
SHORT_STREAM = 300
"""Tokens; 1.2 s, shorter than a drain may take."""
OF_ONE_KIND = 6
"""Workers; one more than the failures that open a circuit."""
ORPHAN_TIMEOUT = STALE_AFTER


def _guest(stage: Stage) -> tuple[dict[str, Any], str]:
    """A worker that serves, and its model, of which there is no other."""
    model = f"synthetic:{stage.new_name()}"
    worker_id = stage.hive.spawn(model, engine_args=["--tokens-per-second", "250"])
    return stage.wait_serving(worker_id), model


def _delete(stage: Stage, worker_id: str, force: bool = False) -> None:
    answer = stage.hive.call("DELETE", f"/v1/workers/{worker_id}{'?force=true' if force else ''}")
    if answer.status != 202:
        raise Violated(f"a delete was answered with {answer.status}: {answer.body!r}")


def _next_hive(stage: Stage) -> int:
    """Kill this hive now and start the next; returns where the next one's story begins."""
    stage.injected()
    stage.kill_hive()
    mark = len(stage.story.steps)
    stage.start_hive()
    return mark


def _stays_deleted(stage: Stage, old: dict[str, Any], mark: int) -> None:
    worker_id = old["worker_id"]
    stage.hive.wait_state(worker_id, "gone")
    marks = worker_processes(stage.hive.state_dir, {worker_id})
    if left := [described(pid) for pid, (whose, _) in marks.items() if whose == worker_id]:
        raise Violated(f"{worker_id} was deleted, and of it there still are {left}")
    steps = [step for step in stage.story.steps[mark:] if step.worker_id == worker_id]
    if again := [
        step for step in steps if step.incarnation != old["incarnation"] or step.after in ("backoff", "failed")
    ]:
        raise Violated(f"{worker_id} was deleted, and the next hive would have it back: {again}")
    _nothing_counted(stage, old["model_ref"])


def _nothing_counted(stage: Stage, model: str) -> None:
    """What was asked for is no failure."""
    circuits = stage.hive.get("/v1/circuits").json["circuits"]
    if counted := [c for c in circuits if c["model_ref"] == model and (c["failures"] or c["state"] != "closed")]:
        raise Violated(f"an end that was asked for counts as a failure: {counted}")


@fault("deleted, then the hive is killed", weight=1)
def delete_then_kill(stage: Stage) -> None:
    """A delete that was answered holds, although the hive that answered it is dead."""
    _delete_and_kill(stage, force=False, until=lambda worker_id: None)


@fault("deleted by force, then the hive is killed", weight=1)
def force_then_kill(stage: Stage) -> None:
    """A delete by force that was answered holds, although the hive that answered it is dead."""
    _delete_and_kill(stage, force=True, until=lambda worker_id: None)


@fault("deleted and gone, then the hive is killed", weight=1)
def delete_until_gone_then_kill(stage: Stage) -> None:
    """What is not listed any more is not listed by the next hive either."""
    _delete_and_kill(stage, force=False, until=lambda worker_id: stage.hive.wait_state(worker_id, "gone"))


@fault("deleted by force and gone, then the hive is killed", weight=1)
def force_until_gone_then_kill(stage: Stage) -> None:
    """What was ended by force and is not listed any more is not listed by the next hive either."""
    _delete_and_kill(stage, force=True, until=lambda worker_id: stage.hive.wait_state(worker_id, "gone"))


def _delete_and_kill(stage: Stage, *, force: bool, until: Callable[[str], object]) -> None:
    before = stage.identities()
    old, _ = _guest(stage)
    with stage.hive_gap():
        _delete(stage, old["worker_id"], force)
        until(old["worker_id"])
        mark = _next_hive(stage)
    _stays_deleted(stage, old, mark)
    stage.same_residents(before)


@fault("deleted, then the hive is killed during the drain", weight=1)
def drain_then_kill(stage: Stage) -> None:
    """A worker that was to end after its requests ends although the hive that waited for them is dead."""
    before = stage.identities()
    old, model = _guest(stage)
    asking = stage.traffic.begin(Wish(model, stream=True, tokens=LONG_STREAM))
    asking.wait_first()
    with stage.hive_gap():
        _delete(stage, old["worker_id"])
        stage.hive.wait_state(old["worker_id"], "draining")
        mark = _next_hive(stage)
        asking.wait()
    _stays_deleted(stage, old, mark)
    stage.same_residents(before)


@fault("restarted by hand, then the hive is killed", weight=2)
def restart_then_kill(stage: Stage) -> None:
    """A restart that was answered comes to its end, although the hive that answered it is dead."""
    old, model = _guest(stage)
    with stage.hive_gap():
        answer = stage.hive.post(f"/v1/workers/{old['worker_id']}/restart", {})
        if answer.status != 202:
            raise Violated(f"a restart was answered with {answer.status}: {answer.body!r}")
        stage.let_pass(stage.rng.choice((0.0, stage.rng.uniform(0.0, 0.4))))
        _next_hive(stage)
    stage.wait_replaced(old)
    _nothing_counted(stage, model)
    stage.dismiss(old["worker_id"])


@fault("hive away for longer than orphan_timeout", weight=1)
def stay_away(stage: Stage) -> None:
    """Workers that ended because no hive was there are all started by the next one, and no circuit opens."""
    kind = f"synthetic:{stage.new_name()}"
    of_one_kind = [stage.hive.spawn(kind) for _ in range(OF_ONE_KIND)]
    everybody = [*stage.residents, *of_one_kind]
    for worker_id in everybody:
        stage.wait_serving(worker_id)
    with stage.hive_gap():
        stage.kill_hive()
        stage.start_hive({"lifecycle.orphan_timeout": f"{ORPHAN_TIMEOUT}s"})
        moment = time.monotonic()
        for worker_id in everybody:  # they hear of it in the answer to a beat
            stage.wait_beat_after({"worker_id": worker_id}, moment)
        before = [stage.hive.worker(worker_id) for worker_id in everybody]
        stage.kill_hive()
        wait_for(lambda: not stage.hive.processes(), "every worker has ended itself")
        mark = len(stage.story.steps)
        stage.injected()
        stage.start_hive()
    for worker in before:
        stage.wait_replaced(worker)
    if failed := [step for step in stage.story.steps[mark:] if step.after == "failed"]:
        raise Violated(f"workers without a hive ended themselves, and were given up for it: {failed}")
    circuits = stage.hive.get("/v1/circuits").json["circuits"]
    if opened := [circuit for circuit in circuits if circuit["state"] != "closed"]:
        raise Violated(f"workers without a hive ended themselves, and a circuit opened for it: {opened}")


def _start_leaving_hive(stage: Stage) -> None:
    stage.kill_hive()
    stage.start_hive(LEAVE)


def _left_well(stage: Stage) -> None:
    assert stage.hive.process is not None
    code = stage.hive.process.wait(60)
    if code != 0:
        raise Violated(f"a hive that leaves its workers ended with exit code {code}")


@fault("two signals at once, on_shutdown = leave", weight=1)
def leave_at_once(stage: Stage) -> None:
    """Somebody in a hurry ends the hive, not the workers that it was to leave."""
    before = stage.identities()
    with stage.hive_gap():
        _start_leaving_hive(stage)
        stage.injected()
        for number in (signal.SIGTERM, signal.SIGINT):
            stage.hive.signal(number)
        _left_well(stage)
        if dead := [pid for _, *pair in before.values() for pid in pair if not is_alive(pid)]:
            raise Violated(f"of the workers that were to be left, these processes are gone: {dead}")
        stage.start_hive()
    stage.same_residents(before)


@fault("hive ended with on_shutdown = leave while a worker drains", weight=1)
def leave_during_drain(stage: Stage) -> None:
    """A worker that somebody has deleted is not left with the others."""
    before = stage.identities()
    with stage.hive_gap():
        _start_leaving_hive(stage)
        for worker_id in stage.residents:
            stage.wait_serving(worker_id)
        old, model = _guest(stage)
        tokens = stage.rng.choice((SHORT_STREAM, LONG_STREAM))
        asking = stage.traffic.begin(Wish(model, stream=True, tokens=tokens))
        asking.wait_first()
        _delete(stage, old["worker_id"])
        stage.hive.wait_state(old["worker_id"], "draining")
        stage.injected()
        stage.hive.signal(signal.SIGTERM)
        outcome = asking.wait()
        _left_well(stage)
        if left := [pid for pid in (old["pid"], old["engine_pid"]) if is_alive(pid)]:
            raise Violated(f"{old['worker_id']} was deleted, and the hive left its processes {left}")
        mark = len(stage.story.steps)
        stage.start_hive()
    if tokens == SHORT_STREAM and outcome.kind != "answered":
        raise Violated(f"a deleted worker had time for its request, which did not complete: {outcome}")
    _stays_deleted(stage, old, mark)
    stage.same_residents(before)
