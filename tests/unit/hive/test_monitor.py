"""Health, memory, and pauses of the hive, as the monitor sees them."""

import errno
from dataclasses import replace

import anyio
import pytest

from rbee.core.claims import Claim, Need, Parts, Placement
from rbee.core.events import Condemned, EndRequested
from rbee.core.exits import ExitReason
from rbee.core.launch import Footprint, Reply
from rbee.core.worker import WorkerState
from tests.unit.hive.monitored import GIB, HEALTHY, MIB, OPTIONS, watching

pytestmark = pytest.mark.anyio
S = WorkerState


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


@pytest.mark.parametrize("is_wrapped", [True, False])
async def test_a_check_for_which_this_hive_had_no_descriptor_is_none(monkeypatch, is_wrapped):
    async with watching() as scene:
        record = scene.add(answering=False)

        async def get(url, path, key):
            error = OSError(errno.EMFILE, "Too many open files")
            if is_wrapped:
                raise OSError("All connection attempts failed") from error
            raise error

        await anyio.sleep(31)
        monkeypatch.setattr(scene.probe, "get", get)
        await anyio.sleep(200)
        assert (record.failed_checks, scene.ended) == (1, [])


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


async def test_pages_that_the_processes_of_a_worker_share_end_nobody():
    async with watching() as scene:
        record = scene.add(max_memory_bytes=GIB)
        scene.use(record, private=2 * GIB)
        scene.node.exact_footprints[record.worker.pid] = Footprint(2 * GIB, GIB // 2)
        await anyio.sleep(OPTIONS.memory_interval + 0.1)
        assert scene.ended == []
        assert record.footprint.private_bytes == GIB // 2


async def test_a_worker_that_is_over_its_memory_exactly_is_ended():
    async with watching() as scene:
        record = scene.add(max_memory_bytes=GIB)
        scene.use(record, private=2 * GIB)
        scene.node.exact_footprints[record.worker.pid] = Footprint(2 * GIB, GIB + 1)
        await anyio.sleep(OPTIONS.memory_interval + 0.1)
        assert scene.causes == [ExitReason.OVER_MEMORY]


async def test_only_a_worker_near_its_limit_is_measured_exactly():
    async with watching() as scene:
        record = scene.add(max_memory_bytes=GIB)
        scene.use(record, private=GIB // 2)
        scene.node.exact_footprints[record.worker.pid] = Footprint(0, 2 * GIB)
        await anyio.sleep(OPTIONS.memory_interval + 0.1)
        assert scene.ended == []


async def test_a_worker_above_what_it_was_admitted_with_is_left_alone():
    async with watching() as scene:
        record = scene.add()
        record.claim = Claim(Placement(), Need(Parts(weights_bytes=GIB)))
        scene.use(record, private=3 * GIB)
        await anyio.sleep(OPTIONS.memory_interval + 0.1)
        assert scene.ended == []


async def test_who_was_measured_is_told_after_each_sampling():
    async with watching() as scene:
        scene.add()
        await anyio.sleep(3 * OPTIONS.memory_interval + 0.1)
        assert scene.samplings == 4


async def test_the_processes_of_a_life_are_known_after_its_end_until_the_next():
    async with watching() as scene:
        record = scene.add()
        pid = record.worker.pid
        scene.node.footprints[pid] = Footprint(pids=(pid, 500))
        await anyio.sleep(OPTIONS.memory_interval + 0.1)
        del scene.node.footprints[pid]
        await anyio.sleep(OPTIONS.memory_interval + 0.1)
        assert record.pids == (pid, 500)
        record.worker = replace(record.worker, incarnation=2)
        await anyio.sleep(OPTIONS.memory_interval + 0.1)
        assert record.pids == ()


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
