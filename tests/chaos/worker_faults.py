"""Faults of one worker: its processes are killed, stopped, or hold what is not theirs."""

import os
import signal
import time
from typing import Any

from tests.chaos.catalog import fault
from tests.chaos.clients import Wish
from tests.chaos.stage import STALE_AFTER, Stage, Violated
from tests.hives import is_alive, wait_for

LONG_STREAM = 4000
"""Tokens; longer than any fault takes, at 250 a second."""


def _signal(number: int, *processes: int) -> None:
    for pid in processes:
        os.kill(pid, number)


@fault("keeper killed", weight=10)
def kill_keeper(stage: Stage) -> None:
    """No engine outlives its keeper; the worker is replaced."""
    old = stage.victim()
    stage.injected()
    _signal(signal.SIGKILL, old["pid"])
    stage.wait_replaced(old)


@fault("engine killed", weight=10)
def kill_engine(stage: Stage) -> None:
    """No keeper stays without its engine; the worker is replaced."""
    old = stage.victim()
    stage.injected()
    _signal(signal.SIGKILL, old["engine_pid"])
    stage.wait_replaced(old)


@fault("keeper and engine killed", weight=10)
def kill_both(stage: Stage) -> None:
    """Every listed worker lives: one of which nothing is left is replaced."""
    old = stage.victim()
    stage.injected()
    _signal(signal.SIGKILL, old["engine_pid"], old["pid"])
    stage.wait_replaced(old)


@fault("worker stopped briefly", weight=3)
def pause_briefly(stage: Stage) -> None:
    """A worker that is silent for less than stale_after is kept."""
    old = stage.victim()
    stage.injected()
    _signal(signal.SIGSTOP, old["pid"], old["engine_pid"])
    stage.let_pass(STALE_AFTER / 4)
    moment = time.monotonic()
    _signal(signal.SIGCONT, old["engine_pid"], old["pid"])
    stage.wait_beat_after(old, moment)
    if (now := stage.hive.worker(old["worker_id"]))["incarnation"] != old["incarnation"]:
        raise Violated(f"{old['worker_id']} was ended although it was silent for a moment only: {now['last_exit']}")


@fault("worker stopped for good", weight=3)
def pause_for_good(stage: Stage) -> None:
    """A stopped process is found stale, and killed although it can take no SIGTERM."""
    old = stage.victim()
    mark = len(stage.story.steps)
    stage.injected()
    _signal(signal.SIGSTOP, old["pid"], old["engine_pid"])
    stage.story.wait_step(
        lambda step: step.worker_id == old["worker_id"] and step.event == "WentStale", "it went stale", mark
    )
    wait_for(lambda: not (is_alive(old["pid"]) or is_alive(old["engine_pid"])), "the stopped processes are gone")
    stage.wait_replaced(old)


@fault("engine hangs", weight=1)
def hang(stage: Stage) -> None:
    """A worker whose loop stopped is found, although its health says ok."""
    model = f"synthetic:{stage.new_name()}"
    worker_id = stage.hive.spawn(model, engine_args=["--hang-after", "40"])
    old = stage.wait_serving(worker_id)
    asking = stage.traffic.begin(Wish(model, stream=True, tokens=LONG_STREAM))
    asking.wait_first()
    stage.injected()
    mark = len(stage.story.steps)
    stage.story.wait_step(
        lambda step: step.worker_id == worker_id and step.exit_reason == "unhealthy", "it is ended as unhealthy", mark
    )
    stage.wait_replaced(old)
    stage.dismiss(worker_id)
    asking.wait()


def _spawn_holder(stage: Stage, kind: str) -> tuple[dict[str, Any], set[int]]:
    """A worker whose engine has a child that holds the port, and all of its processes."""
    worker_id, _ = stage.spawn_odd(holder=kind)
    worker = stage.wait_serving(worker_id)
    family = {pid for pid, mark in stage.look().processes.items() if mark[0] == worker_id}
    if len(family) < 3:
        raise Violated(f"the engine was to have a child: {family}")
    return worker, family


def _end_holder(stage: Stage, worker: dict[str, Any], family: set[int]) -> None:
    stage.wait_replaced(worker)
    if left := [pid for pid in family if is_alive(pid)]:
        raise Violated(f"{worker['worker_id']} serves again, and of its last incarnation there still are {left}")
    stage.dismiss(worker["worker_id"])


@fault("engine killed, its child in the group holds the port")
def holder_in_group(stage: Stage) -> None:
    """No grandchild survives its engine, and the port is free."""
    worker, family = _spawn_holder(stage, "group")
    stage.injected()
    _signal(signal.SIGKILL, worker["engine_pid"])
    _end_holder(stage, worker, family)


@fault("engine killed, its child in a session of its own holds the port")
def holder_in_session(stage: Stage) -> None:
    """No grandchild survives its engine, not even one that called setsid."""
    worker, family = _spawn_holder(stage, "session")
    stage.injected()
    _signal(signal.SIGKILL, worker["engine_pid"])
    _end_holder(stage, worker, family)


@fault("keeper killed first, the engine's child in the group holds the port")
def orphaned_holder_in_group(stage: Stage) -> None:
    """No grandchild survives, also when the keeper cannot look for it any more."""
    worker, family = _spawn_holder(stage, "group")
    stage.injected()
    _signal(signal.SIGKILL, worker["pid"])
    _end_holder(stage, worker, family)


@fault("keeper killed first, the engine's child in a session of its own holds the port")
def orphaned_holder_in_session(stage: Stage) -> None:
    """No grandchild survives, also when it called setsid and its keeper is dead."""
    worker, family = _spawn_holder(stage, "session")
    stage.injected()
    _signal(signal.SIGKILL, worker["pid"])
    _end_holder(stage, worker, family)


@fault("client gone in the middle of a stream", weight=3)
def client_gone(stage: Stage) -> None:
    """A slot is given back when nobody reads any more, and the engine stops."""
    worker = stage.victim()
    stage.traffic.pause()
    model = stage.residents[worker["worker_id"]]
    stage.traffic.ask(Wish(model, stream=True, tokens=LONG_STREAM, leaves_after=5))
    stage.injected()
    wait_for(lambda: stage.hive.worker(worker["worker_id"])["in_flight"] == 0, "its slot is given back", 10)
    # Told by a beat, which may have been under way when the client left; the stream itself would take 16 s.
    wait_for(
        lambda: stage.hive.worker(worker["worker_id"])["telemetry"]["slots_busy"] == 0, "its engine has stopped", 10
    )


def _spawn_serving(stage: Stage) -> tuple[str, Any]:
    model = f"synthetic:{stage.new_name()}"
    worker_id = stage.hive.spawn(model, engine_args=["--tokens-per-second", "250"])
    stage.wait_serving(worker_id)
    asking = stage.traffic.begin(Wish(model, stream=True, tokens=200))
    asking.wait_first()
    return worker_id, asking


@fault("deleted while serving")
def delete_serving(stage: Stage) -> None:
    """A request in flight ends before the worker that it is on."""
    worker_id, asking = _spawn_serving(stage)
    stage.injected()
    stage.dismiss(worker_id)
    outcome = asking.wait()
    if outcome.kind != "answered":
        raise Violated(f"a worker was deleted without force, and its request did not complete: {outcome}")


@fault("deleted by force while serving")
def delete_serving_by_force(stage: Stage) -> None:
    """A request in flight ends with a clear error when its worker is ended by force."""
    worker_id, asking = _spawn_serving(stage)
    stage.injected()
    stage.dismiss(worker_id, force=True)
    outcome = asking.wait()
    if outcome.kind not in ("broken_off", "answered"):
        raise Violated(f"a worker was deleted by force, and its stream ended without an error event: {outcome}")
