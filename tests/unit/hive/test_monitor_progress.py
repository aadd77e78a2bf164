"""Hung, loading for too long and idle: hours of them cost nothing on a jumping clock."""

from dataclasses import replace

import anyio
import pytest

from rbee.core.events import EndRequested
from rbee.core.exits import ExitReason
from rbee.core.launch import Footprint
from rbee.core.worker import WorkerState
from rbee.hive.monitor import LOOK_INTERVAL
from tests.unit.hive.monitored import MIB, OPTIONS, watching

pytestmark = pytest.mark.anyio
S = WorkerState


# Hung.


async def test_a_stopped_loop_is_found_although_health_says_ok():
    async with watching() as scene:
        record = scene.add()
        await anyio.sleep(7.3)
        scene.begin(record)
        scene.begin(record)
        await anyio.sleep(119.9)
        assert scene.ended == []
        await anyio.sleep(LOOK_INTERVAL + OPTIONS.memory_interval + 0.2)
        [(_, _, event)] = scene.ended
        assert event.cause is ExitReason.UNHEALTHY
        assert event.reason.startswith("hung: 2 requests, and for 12")
        assert record.worker.state is S.DRAINING


async def test_a_twelve_second_prompt_batch_is_no_hang_even_where_ten_seconds_would_be():
    """No byte, no counter, no answer to its health for 12 s: but it computes."""
    async with watching(hang_timeout=10.0, memory_interval=1.0, interval=3.0, health_timeout=1.0) as scene:
        record = scene.add()
        scene.probe.silent.add(record.worker.url)
        scene.begin(record)
        for _ in range(24):
            await anyio.sleep(0.5)
            scene.use(record, cpu=0.9)
        assert (record.failed_checks, scene.ended) == (0, [])


async def test_a_slow_stream_is_no_hang():
    async with watching() as scene:
        record = scene.add()
        scene.begin(record)
        for _ in range(10):
            await anyio.sleep(119)
            scene.route(record).activity.relayed_bytes += 10
        assert scene.ended == []


async def test_slots_that_the_engine_calls_busy_hang_without_a_request_of_ours():
    async with watching() as scene:
        record = scene.add()
        for _ in range(6):
            scene.beat(record, slots_busy=1, generated_tokens_total=5)
            await anyio.sleep(30)
        assert scene.causes == [ExitReason.UNHEALTHY]


async def test_one_old_beat_does_not_make_an_idle_worker_hang():
    async with watching() as scene:
        scene.beat(scene.add(), slots_busy=1)
        await anyio.sleep(1000)
        assert scene.ended == []


async def test_an_idle_worker_does_not_hang():
    async with watching() as scene:
        record = scene.add()
        scene.begin(record)
        await anyio.sleep(100)
        scene.finish(record)
        await anyio.sleep(500)
        scene.begin(record)
        await anyio.sleep(100)
        assert scene.ended == []


async def test_where_no_processor_time_can_be_seen_nobody_hangs():
    async with watching() as scene:
        scene.begin(scene.add("by-hand", external=True))
        unseen = scene.add("w-1", pid=300)
        scene.begin(unseen)
        scene.node.footprints.clear()
        await anyio.sleep(1000)
        assert scene.ended == []


async def test_a_measurement_that_fails_ends_nobody_and_is_tried_again(monkeypatch):
    async with watching() as scene:
        record = scene.add()
        scene.begin(record)
        measure, fail = scene.node.measure, True

        async def failing(pids):
            if fail:
                raise OSError("Too many open files")
            return await measure(pids)

        monkeypatch.setattr(scene.node, "measure", failing)
        await anyio.sleep(600)
        assert scene.ended == []
        fail = False
        await anyio.sleep(130)
        assert scene.causes == [ExitReason.UNHEALTHY]


# Load.


async def test_a_load_that_never_gets_anywhere_is_given_up():
    """As measured: its keeper's questions cost it 0.2 % of a core for ever."""
    async with watching() as scene:
        record = scene.add(state=S.STARTING)
        await anyio.sleep(1)
        record.worker = replace(record.worker, state=S.LOADING)
        for _ in range(59):
            await anyio.sleep(5)
            scene.use(record, cpu=0.01)
        assert scene.ended == []
        await anyio.sleep(10)
        [(at, _, event)] = scene.ended
        assert at == pytest.approx(300.0, abs=5.1)
        assert event.cause is ExitReason.LOAD_TIMEOUT


@pytest.mark.parametrize("progress", [{"rss": MIB}, {"read": MIB}, {"cpu": 20.0}], ids=["memory", "bytes", "processor"])
async def test_a_slow_load_that_gets_on_may_take_its_time(progress):
    async with watching() as scene:
        record = scene.add(state=S.LOADING)
        for _ in range(12):
            await anyio.sleep(290)
            scene.use(record, **progress)
        assert scene.ended == []


async def test_no_load_takes_longer_than_the_limit():
    async with watching() as scene:
        record = scene.add(state=S.STARTING)
        async with anyio.create_task_group() as tasks:

            async def load():
                while True:
                    scene.use(record, read=100 * MIB)
                    await anyio.sleep(10)

            tasks.start_soon(load)
            await anyio.sleep(100)
            record.worker = replace(record.worker, state=S.LOADING, since=anyio.current_time())
            await anyio.sleep(3499)
            assert scene.ended == []
            await anyio.sleep(2)
            tasks.cancel_scope.cancel()
        assert scene.causes == [ExitReason.LOAD_TIMEOUT]
        assert "lifecycle.load_limit" in scene.ended[0][2].reason


async def test_the_load_of_a_worker_started_by_hand_is_its_own_affair():
    async with watching() as scene:
        scene.add("by-hand", S.LOADING, external=True)
        await anyio.sleep(4000)
        assert scene.ended == []


async def test_the_keeper_is_watched_until_there_is_an_engine():
    async with watching() as scene:
        record = scene.add(state=S.STARTING)
        record.worker = replace(record.worker, engine_pid=None)
        del scene.node.footprints[101]
        await anyio.sleep(200)
        record.worker = replace(record.worker, state=S.LOADING, engine_pid=101)
        scene.node.footprints[101] = Footprint()
        await anyio.sleep(290)
        assert scene.ended == []
        await anyio.sleep(20)
        assert scene.causes == [ExitReason.LOAD_TIMEOUT]


async def test_a_restart_starts_everything_anew():
    async with watching() as scene:
        record = scene.add(state=S.LOADING, answering=False)
        await anyio.sleep(290)
        record.failed_checks = 2
        record.worker = replace(record.worker, state=S.STARTING, incarnation=2, since=anyio.current_time())
        await anyio.sleep(290)
        assert (record.failed_checks, scene.ended) == (0, [])
        await anyio.sleep(20)
        assert scene.causes == [ExitReason.LOAD_TIMEOUT]


# Idle.


async def test_a_worker_that_nobody_uses_ends_for_good_on_its_time():
    async with watching() as scene:
        await anyio.sleep(3.3)
        scene.add(idle_timeout=20.5)
        await anyio.sleep(60)
        assert scene.ended == [(pytest.approx(3.3 + 20.5), "w-1", EndRequested(ExitReason.IDLE))]


async def test_a_request_keeps_it_and_its_end_starts_the_time_anew():
    async with watching() as scene:
        record = scene.add(idle_timeout=20.0)
        await anyio.sleep(19.5)
        scene.begin(record)
        await anyio.sleep(60)
        scene.finish(record)
        await anyio.sleep(19.9)
        scene.begin(record)
        scene.finish(record)
        last = scene.now
        await anyio.sleep(30)
        [(at, _, event)] = scene.ended
        assert event.cause is ExitReason.IDLE
        assert last + 20 <= at <= last + 20 + LOOK_INTERVAL


async def test_requests_past_the_gateway_keep_it():
    async with watching() as scene:
        record = scene.add(idle_timeout=20.0)
        for _ in range(5):
            await anyio.sleep(15)
            scene.beat(record, slots_busy=1)
        await anyio.sleep(25)
        scene.beat(record, slots_busy=0)
        assert scene.ended == []
        await anyio.sleep(22)
        assert scene.causes == [ExitReason.IDLE]


@pytest.mark.parametrize("never", [None, 0.0])
async def test_without_a_time_nobody_idles_away(never):
    async with watching() as scene:
        scene.add(idle_timeout=never)
        await anyio.sleep(5000)
        assert scene.ended == []
