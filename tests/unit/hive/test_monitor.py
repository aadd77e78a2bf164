"""The monitor on a jumping clock: hours of loads and hangs cost nothing here."""

from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

import anyio
import pytest

from rbee.core.events import Condemned, EndRequested
from rbee.core.exits import ExitReason
from rbee.core.launch import Footprint, Reply, Telemetry
from rbee.core.liveness import seen
from rbee.core.routing import Route, RouteTable
from rbee.core.worker import Worker, WorkerSpec, WorkerState, advance
from rbee.hive.monitor import LOOK_INTERVAL, Monitor, MonitorOptions
from rbee.hive.registry import Record, Registry
from rbee.testing import FakeNode, FakeProbe

pytestmark = pytest.mark.anyio
S = WorkerState
MIB, GIB = 2**20, 2**30
HEALTHY = Reply(200, b'{"status":"ok"}')
OPTIONS = MonitorOptions(
    interval=30.0,
    memory_interval=5.0,
    health_timeout=5.0,
    max_failures=3,
    hang_timeout=120.0,
    load_timeout=300.0,
    load_limit=3600.0,
    max_worker_memory=8 * GIB,
    health_paths={"vllm": "/ping"},
)


class Scene:
    """A monitor and what it sees. ``ended``: (seconds since the scene began, worker id, event)."""

    def __init__(self, **options):
        self.registry, self.routes = Registry(), RouteTable()
        self.node, self.probe = FakeNode(), FakeProbe()
        self.ended = []
        self.start = anyio.current_time()
        self.monitor = Monitor(
            replace(OPTIONS, **options),
            self.registry,
            self.routes,
            self.node,
            self.probe,
            lambda worker: f"key of {worker.spec.worker_id}",
            self.end,
        )

    @property
    def now(self):
        return anyio.current_time() - self.start

    def add(self, worker_id="w-1", state=S.READY, *, pid=100, answering=True, **spec):
        worker = Worker(
            WorkerSpec(worker_id, "synthetic:x", **spec),
            state=state,
            since=anyio.current_time(),
            pid=pid,
            engine_pid=pid + 1,
            url=f"http://{worker_id}",
            slots=4,
        )
        record = Record(worker, seen(anyio.current_time(), 60.0), datetime.now(UTC))
        self.registry.add(record)
        self.routes.publish(Route(worker_id, "synthetic:x"))
        self.use(record)
        if answering:
            self.probe.answering[worker.url] = HEALTHY
        return record

    def end(self, worker_id, event):
        """As a supervisor does: an event that is not legal raises."""
        record = self.registry.get(worker_id)
        record.worker, _ = advance(record.worker, event, anyio.current_time())
        self.ended.append((self.now, worker_id, event))
        if record.worker.state is S.GONE:
            self.registry.remove(worker_id)

    @property
    def causes(self):
        return [event.cause for _, _, event in self.ended]

    # What workers do.

    def route(self, record):
        return self.routes.routes[record.worker_id]

    def begin(self, record):
        self.routes.acquire(record.worker_id)

    def finish(self, record):
        self.routes.release(record.worker_id)

    def beat(self, record, **telemetry):
        record.vital, record.telemetry = seen(anyio.current_time(), 60.0), Telemetry(**telemetry)

    def use(self, record, cpu=0.0, read=0, rss=0, private=0):
        """Its keeper and its engine use that much more."""
        for pid in (record.worker.pid, record.worker.engine_pid):
            old = self.node.footprints.get(pid, Footprint())
            self.node.footprints[pid] = Footprint(
                old.rss_bytes + rss, old.private_bytes + private, old.cpu_seconds + cpu, old.read_bytes + read
            )


@asynccontextmanager
async def watching(**options):
    scene = Scene(**options)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scene.monitor.run)
        yield scene
        tasks.cancel_scope.cancel()


# Health.


async def test_each_ready_worker_is_asked_with_its_own_key_on_the_path_of_its_engine():
    async with watching() as scene:
        scene.add("w-1")
        scene.add("w-2", pid=200, engine="vllm")
        scene.add("by-hand", pid=300, external=True)
        scene.add("w-3", S.LOADING, pid=400)
        await anyio.sleep(31)
        assert sorted(scene.probe.asked) == [
            ("http://by-hand", "/health", "key of by-hand"),
            ("http://w-1", "/health", "key of w-1"),
            ("http://w-2", "/ping", "key of w-2"),
        ]


async def test_three_failed_checks_in_a_row_end_a_worker():
    async with watching() as scene:
        record = scene.add(answering=False)
        await anyio.sleep(89)
        assert (record.failed_checks, scene.ended) == (2, [])
        await anyio.sleep(2)
        [(at, _, event)] = scene.ended
        assert at == pytest.approx(90.0)
        assert event.cause is ExitReason.UNHEALTHY
        assert event.reason == "3 health checks in a row failed (at last: nobody listens there)"


async def test_a_good_answer_forgets_the_failures_before_it():
    async with watching() as scene:
        record = scene.add()
        scene.probe.answering[record.worker.url] = Reply(500, b"")
        await anyio.sleep(61)
        assert record.failed_checks == 2
        scene.probe.answering[record.worker.url] = HEALTHY
        await anyio.sleep(30)
        assert record.failed_checks == 0
        scene.probe.answering[record.worker.url] = Reply(500, b"")
        await anyio.sleep(60)
        assert (record.failed_checks, scene.ended) == (2, [])
        await anyio.sleep(30)
        assert scene.ended[0][2].reason.endswith("(at last: it answered 500)")


async def test_an_external_worker_that_fails_is_removed_and_not_signalled():
    async with watching() as scene:
        scene.add("by-hand", external=True, answering=False)
        await anyio.sleep(91)
        assert [event for _, _, event in scene.ended] == [EndRequested(ExitReason.UNHEALTHY, force=True)]
        assert "by-hand" not in scene.registry


async def test_a_worker_that_is_silent_and_still_is_ended_for_its_silence():
    async with watching() as scene:
        record = scene.add()
        scene.probe.silent.add(record.worker.url)
        await anyio.sleep(90 + OPTIONS.health_timeout + OPTIONS.memory_interval + 0.1)
        assert scene.causes == [ExitReason.UNHEALTHY]
        assert scene.ended[0][2].reason.endswith("(at last: no answer within 5 s)")


@pytest.mark.parametrize("moves", ["bytes", "counters", "processor"])
async def test_silence_does_not_count_while_the_worker_moves(moves):
    async with watching() as scene:
        record = scene.add()
        scene.probe.silent.add(record.worker.url)
        await anyio.sleep(2.5)
        for turn in range(60):
            if moves == "bytes":
                scene.route(record).activity.relayed_bytes += 1
            elif moves == "counters":
                scene.beat(record, generated_tokens_total=turn)
            else:
                scene.use(record, cpu=1.0)
            await anyio.sleep(5)
        assert (record.failed_checks, scene.ended) == (0, [])


async def test_a_refused_connection_counts_however_busy_the_worker_is():
    async with watching() as scene:
        record = scene.add(answering=False)
        for _ in range(19):
            scene.route(record).activity.relayed_bytes += 1
            scene.use(record, cpu=5.0)
            await anyio.sleep(5)
        assert scene.causes == [ExitReason.UNHEALTHY]


@pytest.mark.parametrize("meanwhile", ["left", "again", "removed"])
async def test_a_worker_that_is_another_by_now_is_not_judged_by_an_old_question(meanwhile):
    async with watching(max_failures=1) as scene:
        record = scene.add()
        scene.probe.silent.add(record.worker.url)
        await anyio.sleep(32)
        if meanwhile == "left":
            record.worker = replace(record.worker, state=S.DRAINING)
        elif meanwhile == "again":
            record.worker = replace(record.worker, incarnation=2)
        else:
            scene.registry.remove("w-1")
        await anyio.sleep(10)
        assert (record.failed_checks, scene.ended) == (0, [])


async def test_hundreds_that_do_not_answer_are_asked_in_bounded_numbers_within_one_round():
    async with watching(max_failures=1) as scene:
        for number in range(200):
            record = scene.add(f"w-{number}", pid=1000 + 2 * number)
            scene.probe.silent.add(record.worker.url)
        await anyio.sleep(34.9)
        assert len(scene.probe.asked) == 64
        await anyio.sleep(25)
        assert len(scene.ended) == 200


# Memory.


async def test_the_footprint_is_that_of_the_whole_worker_and_goes_with_its_process():
    async with watching() as scene:
        record = scene.add()
        scene.node.footprints[record.worker.pid] = Footprint(rss_bytes=5)
        await anyio.sleep(6)
        assert record.footprint == Footprint(rss_bytes=5)
        record.worker = replace(record.worker, state=S.BACKOFF, pid=None)
        await anyio.sleep(6)
        assert record.footprint is None


@pytest.mark.parametrize("state", [S.STARTING, S.LOADING, S.READY])
async def test_a_worker_over_its_memory_is_ended_in_whatever_state(state):
    async with watching() as scene:
        record = scene.add(state=state, max_memory_bytes=GIB)
        await anyio.sleep(7)
        scene.use(record, private=GIB + MIB)
        await anyio.sleep(5)
        [(at, _, event)] = scene.ended
        assert (at, event.cause) == (pytest.approx(10.0), ExitReason.OVER_MEMORY)
        assert "its max_memory_bytes" in event.reason


async def test_a_worker_that_is_already_being_ended_is_not_condemned_again():
    async with watching() as scene:
        for number, state in enumerate([S.DRAINING, S.STOPPING]):
            scene.use(scene.add(f"w-{number}", state, pid=100 + 10 * number), private=9 * GIB)
        scene.use(scene.add("by-hand", pid=500, external=True), private=9 * GIB)
        await anyio.sleep(600)
        assert scene.ended == []


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


# The hive itself.


async def test_time_in_which_the_hive_did_not_run_counts_for_nobody(monkeypatch):
    """The loop is stopped as SIGSTOP stops it: the clock goes on, and nothing ran meanwhile."""
    paused_for = 0.0
    real = anyio.current_time
    monkeypatch.setattr("rbee.hive.monitor.anyio.current_time", lambda: real() + paused_for)
    async with watching() as scene:
        hung, idle = scene.add("w-1"), scene.add("w-2", pid=200, idle_timeout=100.0)
        loading = scene.add("w-3", S.LOADING, pid=300)
        scene.begin(hung)
        await anyio.sleep(60.9)
        paused_for = 1000.0
        await anyio.sleep(0.2)  # our look comes before the tick that tells of the pause
        assert scene.ended == []
        scene.monitor.hive_was_paused(1000.0)
        await anyio.sleep(30)
        assert scene.ended == []
        await anyio.sleep(300)
        assert {worker_id for _, worker_id, _ in scene.ended} == {"w-1", "w-2", "w-3"}
        assert [r.worker.state for r in (idle, loading)] == [S.DRAINING, S.STOPPING]


async def test_a_pause_is_no_part_of_the_longest_load():
    async with watching() as scene:
        scene.add(state=S.LOADING)
        scene.node.footprints.clear()
        await anyio.sleep(3000)
        scene.monitor.hive_was_paused(500.0)
        await anyio.sleep(1000)
        assert scene.ended == []
        await anyio.sleep(101)
        assert scene.causes == [ExitReason.LOAD_TIMEOUT]


async def test_silence_in_a_time_with_a_pause_is_no_failure():
    async with watching(max_failures=1) as scene:
        record = scene.add()
        scene.probe.silent.add(record.worker.url)
        await anyio.sleep(31)
        scene.monitor.hive_was_paused(1.0)
        await anyio.sleep(20)
        assert (record.failed_checks, scene.ended) == (0, [])


async def test_a_check_that_the_hive_slept_through_is_no_failure(monkeypatch):
    slept = 0.0
    real = anyio.current_time
    monkeypatch.setattr("rbee.hive.monitor.anyio.current_time", lambda: real() + slept)
    async with watching(max_failures=1) as scene:
        record = scene.add()
        scene.probe.silent.add(record.worker.url)
        await anyio.sleep(32)
        slept = 90.0
        scene.probe.silent.clear()
        await anyio.sleep(9)
        assert len(scene.probe.asked) == 2
        assert (record.failed_checks, scene.ended) == (0, [])


async def test_the_gone_are_forgotten():
    async with watching() as scene:
        for number in range(20):
            scene.add(f"w-{number}", pid=1000 + 2 * number)
        await anyio.sleep(10)
        for number in range(20):
            scene.registry.remove(f"w-{number}")
        await anyio.sleep(60)
        assert not scene.monitor._watches


async def test_a_condemnation_is_told_once_and_is_a_legal_event():
    async with watching() as scene:
        record = scene.add(max_memory_bytes=1)
        scene.use(record, private=5)
        scene.begin(record)
        await anyio.sleep(1000)
        assert len(scene.ended) == 1
        assert isinstance(scene.ended[0][2], Condemned)
