"""Deadlines on a jumping clock. A pause of the hive is played by a clock that runs on while nobody looks."""

from dataclasses import replace
from datetime import UTC, datetime

import anyio
import pytest
from structlog.testing import capture_logs

from rbee.core.errors import IllegalTransition, OlderIncarnation
from rbee.core.launch import Telemetry
from rbee.core.liveness import seen
from rbee.core.worker import Worker, WorkerSpec, WorkerState
from rbee.hive.heartbeats import Heartbeats
from rbee.hive.registry import Record, Registry

pytestmark = pytest.mark.anyio
S = WorkerState


class Scene:
    def __init__(self):
        self.registry = Registry()
        self.stale = []
        self.gaps = []
        self.can_listen = True
        self.heartbeats = Heartbeats(self.registry, 30.0, 60.0, self.found, self.gaps.append, lambda: self.can_listen)

    def add(self, worker_id, state=S.READY, *, external=False):
        worker = Worker(WorkerSpec(worker_id, "synthetic:x", external=external), state=state, pid=1000)
        record = Record(worker, seen(anyio.current_time(), 60.0), datetime.now(UTC))
        self.registry.add(record)
        return record

    def found(self, worker_id):
        self.stale.append((worker_id, anyio.current_time()))
        self.registry.remove(worker_id)


async def test_a_worker_that_never_beats_is_found_on_its_deadline():
    scene = Scene()
    start = anyio.current_time()
    scene.add("w-1", S.STARTING)
    with anyio.move_on_after(100):
        await scene.heartbeats.run()
    assert scene.stale == [("w-1", pytest.approx(start + 60.0, abs=0.001))]


async def test_each_worker_has_a_deadline_of_its_own():
    scene = Scene()
    start = anyio.current_time()
    first = scene.add("w-1")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scene.heartbeats.run)
        await anyio.sleep(17.3)
        scene.add("w-2")
        await anyio.sleep(12.7)
        scene.heartbeats.beat(first, None, True, Telemetry())
        await anyio.sleep(200)
        tasks.cancel_scope.cancel()
    assert scene.stale == [
        ("w-2", pytest.approx(start + 17.3 + 60, abs=0.001)),
        ("w-1", pytest.approx(start + 30 + 60, abs=0.001)),
    ]


async def test_one_that_beats_is_never_found():
    scene = Scene()
    record = scene.add("w-1")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scene.heartbeats.run)
        for _ in range(20):
            await anyio.sleep(59.9)
            scene.heartbeats.beat(record, 1, True, Telemetry(rss_bytes=5))
        tasks.cancel_scope.cancel()
    assert scene.stale == []
    assert record.telemetry.rss_bytes == 5


@pytest.mark.parametrize("state", [S.STOPPING, S.BACKOFF, S.FAILED])
async def test_silence_means_nothing_where_no_process_should_speak(state):
    scene = Scene()
    scene.add("w-1", state)
    with anyio.move_on_after(200):
        await scene.heartbeats.run()
    assert scene.stale == []


async def test_a_dead_external_worker_is_found_on_its_deadline_too():
    scene = Scene()
    scene.add("by-hand", S.FAILED, external=True)
    with anyio.move_on_after(61):
        await scene.heartbeats.run()
    assert [worker_id for worker_id, _ in scene.stale] == ["by-hand"]


async def test_after_a_pause_of_the_hive_nobody_is_judged_before_they_could_be_heard(monkeypatch):
    """The loop is stopped as SIGSTOP stops it: the clock goes on, and nothing ran meanwhile."""
    scene = Scene()
    scene.add("w-1")
    paused_for = 0.0
    real = anyio.current_time
    monkeypatch.setattr("rbee.hive.heartbeats.anyio.current_time", lambda: real() + paused_for)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scene.heartbeats.run)
        await anyio.sleep(10)
        paused_for = 90.0
        await anyio.sleep(34.5)
        assert scene.stale == []
        await anyio.sleep(1.0)
        assert [worker_id for worker_id, _ in scene.stale] == ["w-1"]
        tasks.cancel_scope.cancel()


async def test_silence_while_no_beat_could_be_accepted_counts_for_nobody():
    """A worker that could be heard for the last moment before its deadline alone had no chance to be."""
    scene = Scene()
    scene.add("w-1")
    with capture_logs() as logs:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scene.heartbeats.run)
            await anyio.sleep(10)
            scene.can_listen = False
            await anyio.sleep(49.9)
            scene.can_listen = True
            await anyio.sleep(34.5)
            assert scene.stale == []
            await anyio.sleep(1.0)
            assert [worker_id for worker_id, _ in scene.stale] == ["w-1"]
            tasks.cancel_scope.cancel()
    assert [line["event"] for line in logs] == ["hive_out_of_descriptors", "hive_has_descriptors_again"]
    assert sum(scene.gaps) == pytest.approx(49.9, abs=0.5)


async def test_a_beat_of_an_older_incarnation_or_of_no_process_changes_nothing():
    scene = Scene()
    record = scene.add("w-1")
    record.worker = replace(record.worker, incarnation=2)
    vital = record.vital
    with pytest.raises(OlderIncarnation):
        scene.heartbeats.beat(record, 1, True, Telemetry())
    record.worker = replace(record.worker, state=S.BACKOFF)
    with pytest.raises(IllegalTransition):
        scene.heartbeats.beat(record, 2, True, Telemetry())
    assert record.vital is vital
