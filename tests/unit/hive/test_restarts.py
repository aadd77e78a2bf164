"""Restarts and circuits of a whole pool on a jumping clock."""

from dataclasses import replace

import anyio
import pytest

from rbee.core.errors import CircuitNotFound, CircuitOpen
from rbee.core.exits import Exit, ExitReason
from rbee.core.restart import CircuitState, RestartRules, key_of
from rbee.core.routing import Standing
from rbee.core.worker import Restart, WorkerState
from rbee.testing import FakeHive
from tests.unit.hive.pools import CRASH, FAILING, crash, make_ready, ready_worker, running, settled

pytestmark = pytest.mark.anyio
S = WorkerState


def restart_wait(record):
    """Seconds that are enough for the delay before the next life; 0 where there is none to wait for."""
    return 17.0 if record.worker.state is S.BACKOFF else 0.0


async def fail_until_open(hive, record):
    """Crash each life as soon as it runs, until the circuit opens."""
    with anyio.fail_after(3600):
        while record.worker.state is not S.FAILED:
            await crash(hive)
            await anyio.sleep(restart_wait(record))
            await settled()


async def test_a_crashed_worker_is_started_again_after_the_first_delay():
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive, FAILING)
        await crash(hive)
        assert record.worker.state is S.BACKOFF
        assert record.worker.message == "Restarting in 1.0 s after exit code 1 (attempt 1 of 5 in 300 s)."
        await anyio.sleep(0.9)
        assert len(hive.node.launches) == 1
        await anyio.sleep(0.2)
        assert [launch.incarnation for launch in hive.node.launches] == [1, 2]
        await make_ready(hive, record)
        assert (record.worker.state, record.worker.restart_count) == (S.READY, 1)


async def test_a_new_life_starts_with_a_clean_record_and_its_own_row():
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive, FAILING)
        record.healthy, record.failed_checks = False, 2
        await crash(hive)
        await anyio.sleep(1.5)
        assert (record.healthy, record.failed_checks, record.footprint) == (True, 0, None)
        row = hive.store.rows[record.worker_id]
        assert (row.incarnation, row.identity, row.url, row.restart_count) == (
            2,
            hive.node.processes[1].identity,
            "",
            1,
        )


async def test_the_next_life_waits_until_nothing_is_left_of_the_last():
    hive = FakeHive(options=replace(FakeHive().options, restart=RestartRules(base_delay=0.0, jitter=0.0)))
    hive.node.sweep_delay = 3.0
    async with running(hive):
        await ready_worker(hive, FAILING)
        await crash(hive)
        await anyio.sleep(2.9)
        assert len(hive.node.launches) == 1
        await anyio.sleep(0.2)
        assert len(hive.node.launches) == 2


async def test_a_worker_that_keeps_crashing_is_given_up_after_its_budget_and_tried_once_a_minute():
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive, FAILING)
        await fail_until_open(hive, record)
        assert len(hive.node.launches) == 5
        assert "Its circuit is open (5 failures in 300 s); the next try is at" in record.worker.message
        report = hive.pool.circuits.report_of(record.worker.spec)
        assert (report.state, report.failures, report.last_exit) == (CircuitState.OPEN, 5, CRASH)
        assert len(report.last_log_lines) == 20
        await anyio.sleep(59)
        assert len(hive.node.launches) == 5
        await anyio.sleep(2)
        assert len(hive.node.launches) == 6
        assert hive.pool.circuits.report_of(record.worker.spec).state is CircuitState.HALF_OPEN
        await crash(hive)
        assert record.worker.state is S.FAILED
        await anyio.sleep(59)
        assert len(hive.node.launches) == 6
        assert hive.pool.circuits.activations == 2


async def test_a_slow_crash_loop_is_given_up_too():
    """Each life lasts 80 s, longer than any delay, and is never stable."""
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive, FAILING)
        lives = 0
        with anyio.fail_after(3600):
            while record.worker.state is not S.FAILED:
                lives += 1
                await anyio.sleep(80)
                await crash(hive)
                await anyio.sleep(restart_wait(record))
                await settled()
                if record.worker.state is not S.FAILED:
                    await make_ready(hive, record)
        assert lives == 5
        assert "without 300 s of stable running between" in record.worker.message


async def test_a_try_that_runs_stably_closes_the_circuit():
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive, FAILING)
        await fail_until_open(hive, record)
        await anyio.sleep(61)
        await make_ready(hive, record)
        with pytest.raises(CircuitOpen, match="tries it now"):
            await hive.pool.spawn(FAILING)
        await anyio.sleep(301)
        assert hive.pool.circuits.report_of(record.worker.spec).state is CircuitState.CLOSED
        await hive.pool.spawn(FAILING)


async def test_a_spawn_of_the_same_thing_is_refused_with_all_that_is_known():
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive, FAILING)
        await fail_until_open(hive, record)
        with pytest.raises(CircuitOpen) as caught:
            await hive.pool.spawn(FAILING)
        error = caught.value
        assert 0 < error.retry_after <= 60
        assert error.details["key"] == key_of(record.worker.spec)
        assert (error.details["exit_code"], error.details["signal"]) == (1, None)
        assert len(error.details["last_log_lines"]) == 20
        assert error.details["probe_at"]
        assert "5 failures in 300 s" in error.message
        assert "exit code 1" in error.message
        await hive.pool.spawn(replace(FAILING, ctx_size=17))


async def test_a_spawn_after_the_wait_is_the_one_try():
    hive = FakeHive()
    async with running(hive):
        await ready_worker(hive, replace(FAILING, restart=Restart.NEVER))
        for _ in range(4):
            await crash(hive)
            await hive.pool.spawn(replace(FAILING, restart=Restart.NEVER))
            await settled()
        await crash(hive)
        with pytest.raises(CircuitOpen):
            await hive.pool.spawn(FAILING)
        await anyio.sleep(61)
        trying = await hive.pool.spawn(FAILING)
        with pytest.raises(CircuitOpen, match=trying.worker_id):
            await hive.pool.spawn(FAILING)
        await hive.pool.delete(trying.worker_id, force=True)
        await hive.pool.wait_gone(trying.worker_id)
        await hive.pool.spawn(FAILING)


async def test_a_reset_by_hand_starts_what_waits_at_once():
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive, FAILING)
        await fail_until_open(hive, record)
        hive.pool.reset_circuit(key_of(record.worker.spec))
        await settled()
        assert record.worker.state is S.STARTING
        assert len(hive.node.launches) == 6
        with pytest.raises(CircuitNotFound):
            hive.pool.reset_circuit(key_of(record.worker.spec))


async def test_a_restart_by_hand_is_the_try_of_an_open_circuit():
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive, FAILING)
        await fail_until_open(hive, record)
        await hive.pool.restart(record.worker_id)
        await settled()
        assert record.worker.state is S.STARTING
        report = hive.pool.circuits.report_of(record.worker.spec)
        assert (report.state, report.trying) == (CircuitState.HALF_OPEN, record.worker_id)


async def test_workers_of_one_kind_that_wait_do_not_all_try_at_once():
    async with running(FakeHive()) as hive:
        first, second = await ready_worker(hive, FAILING), await ready_worker(hive, FAILING)
        with anyio.fail_after(3600):
            while hive.pool.circuits.report_of(first.worker.spec).state is CircuitState.CLOSED:
                await crash(hive)
                await anyio.sleep(2.0)
        for process in hive.node.processes:
            process.end(CRASH)
        await settled()
        started = len(hive.node.launches)
        await anyio.sleep(70)
        assert len(hive.node.launches) == started + 1
        assert {first.worker.state, second.worker.state} & {S.FAILED, S.BACKOFF}


async def test_a_clean_end_is_restarted_only_where_it_shall_always_run():
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive, FAILING)
        await crash(hive, Exit(ExitReason.STOPPED, code=0))
        assert record.worker.state is S.FAILED
        assert "a clean end is none" in record.worker.message
        other = await ready_worker(hive, replace(FAILING, model_ref="synthetic:y", restart=Restart.ALWAYS))
        await crash(hive, Exit(ExitReason.STOPPED, code=0))
        assert other.worker.state is S.BACKOFF


async def test_a_delete_or_a_restart_by_hand_is_no_failure():
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive, FAILING)
        for _ in range(6):
            await hive.pool.restart(record.worker_id)
            await anyio.sleep(1)
            await make_ready(hive, record)
        await hive.pool.delete(record.worker_id)
        await hive.pool.wait_gone(record.worker_id)
        assert list(hive.pool.circuits) == []


async def test_a_fork_that_fails_is_tried_again_and_held_against_nobody():
    async with running(FakeHive()) as hive:
        hive.node.fail_next = OSError("no space left on device")
        record = await hive.pool.spawn(FAILING)
        await settled()
        assert record.worker.state is S.BACKOFF
        assert record.worker.message == "Not started, tried again in 1.0 s: no space left on device."
        await anyio.sleep(1.5)
        assert len(hive.node.launches) == 1
        assert list(hive.pool.circuits) == []


async def test_what_cannot_be_started_for_long_is_tried_less_and_less_often_and_opens_no_circuit():
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive, FAILING)
        hive.store.fail = OSError("disk full")
        await crash(hive)
        await anyio.sleep(100)
        assert record.worker.state is S.BACKOFF
        assert "disk full" in record.worker.message
        assert hive.pool.circuits.report_of(record.worker.spec).failures == 1
        hive.store.fail = None
        await anyio.sleep(61)
        assert len(hive.node.launches) == 2


async def test_when_a_circuit_opens_nobody_of_its_kind_waits_on_in_vain():
    rules = RestartRules(base_delay=50.0, jitter=0.0, max_failures=2)
    async with running(FakeHive(options=replace(FakeHive().options, restart=rules))) as hive:
        first, second = await ready_worker(hive, FAILING), await ready_worker(hive, FAILING)
        hive.node.processes[0].end(CRASH)
        await settled()
        assert first.worker.state is S.BACKOFF
        hive.node.processes[1].end(CRASH)
        await settled()
        assert {first.worker.state, second.worker.state} == {S.FAILED}
        assert "Its circuit is open (2 failures in 300 s); the next try is at" in first.worker.message
        assert "exit code 1" in first.worker.message
        assert hive.routes.candidates("synthetic:x")[0].standing is Standing.OUT


async def test_a_log_that_cannot_be_read_costs_the_log_alone():
    hive = FakeHive()
    hive.node.log_failure = OSError("Input/output error")
    async with running(hive):
        record = await ready_worker(hive, FAILING)
        await crash(hive)
        assert record.worker.state is S.BACKOFF
        (line,) = hive.pool.circuits.report_of(record.worker.spec).last_log_lines
        assert "Input/output error" in line


async def test_a_sweep_that_fails_is_made_again_and_nothing_is_started_before():
    hive = FakeHive()
    hive.node.sweep_failures = 2
    async with running(hive):
        record = await ready_worker(hive, FAILING)
        await crash(hive)
        await anyio.sleep(9)
        assert len(hive.node.launches) == 1
        await anyio.sleep(3)
        assert len(hive.node.launches) == 2
        assert hive.node.swept == [(record.worker_id, 1)]


async def test_an_engine_that_cannot_be_watched_now_is_not_taken_for_dead():
    hive = FakeHive()
    async with running(hive):
        engine = hive.node.add_other(2000)
        hive.node.blind = 3
        record = await ready_worker(hive, FAILING, engine_pid=2000)
        await anyio.sleep(5)
        assert record.worker.state is S.READY
        engine.end(CRASH)
        await settled()
        assert record.worker.state is S.STOPPING


async def test_a_worker_that_waits_can_be_deleted():
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive, FAILING)
        await crash(hive)
        await hive.pool.delete(record.worker_id)
        await hive.pool.wait_gone(record.worker_id)
        await anyio.sleep(10)
        assert len(hive.node.launches) == 1
        assert hive.store.rows == {}
