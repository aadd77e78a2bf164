"""Faults of what is round the hive: its disk is full, its wall clock jumps."""

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.catalog import fault
from tests.chaos.stage import Stage, Violated
from tests.hives import is_alive, wait_for

HOUR = 3600


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
