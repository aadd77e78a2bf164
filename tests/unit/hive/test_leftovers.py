"""What does not end, cannot be looked for, or is left when somebody wants a worker gone."""

from dataclasses import replace

import anyio
import pytest

from rbee.core import events as ev
from rbee.core.exits import Exit, ExitReason
from rbee.core.launch import Ending, ProcessIdentity, Reply, StoredWorker
from rbee.core.restart import CircuitState
from rbee.core.worker import Restart, WorkerState
from rbee.testing import FakeHive, FakeStore
from tests.unit.hive.pools import CRASH, FAILING, crash, make_ready, ready_worker, running, settled

pytestmark = pytest.mark.anyio
S = WorkerState
FOR_EVER = 10**9
URL = "http://127.0.0.1:8085"
ROW = StoredWorker(replace(FAILING, worker_id="w-old"), 3, ProcessIdentity(77, 1, "boot"), URL, slots=4)


async def open_circuit(hive, record):
    with anyio.fail_after(3600):
        while record.worker.state is not S.FAILED:
            await crash(hive)
            await anyio.sleep(17.0 if record.worker.state is S.BACKOFF else 0.0)
            await settled()


@pytest.mark.parametrize("ending", [None, *Ending])
async def test_one_remnant_that_does_not_end_keeps_no_hive_from_being_ready(ending):
    why = Exit(ExitReason.UNHEALTHY, message="hung") if ending is Ending.CONDEMNED else None
    hive = FakeHive(store=FakeStore([replace(ROW, ending=ending, last_exit=why)]))
    hive.node.sweep_failures = FOR_EVER
    with anyio.fail_after(60):
        async with running(hive):
            await ready_worker(hive, replace(FAILING, model_ref="synthetic:y"))


async def test_a_worker_is_not_forgotten_before_nothing_is_left_of_it():
    hive = FakeHive()
    async with running(hive):
        record = await ready_worker(hive, FAILING)
        hive.node.sweep_failures = 3
        await crash(hive)
        await hive.pool.delete(record.worker_id)
        await settled()
        assert hive.store.rows[record.worker_id].ending is Ending.FORGET
        assert hive.node.forgotten == []
        await hive.pool.wait_gone(record.worker_id)
        assert hive.node.swept == [(record.worker_id, 1)]
        assert hive.store.rows == {}


async def test_a_stop_names_the_worker_of_which_something_is_left():
    hive = FakeHive()
    async with running(hive):
        record = await ready_worker(hive, FAILING)
        hive.node.sweep_failures = FOR_EVER
        await crash(hive)
        assert await hive.pool.stop(30.0) == [record.worker_id]
        assert hive.store.rows[record.worker_id].ending is Ending.FORGET


async def test_a_delete_is_written_down_for_a_worker_without_a_process_too():
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive, FAILING)
        hive.node.sweep_delay = 12.0
        await crash(hive)
        await hive.pool.delete(record.worker_id)
        assert hive.store.rows[record.worker_id].ending is Ending.FORGET
        await hive.pool.wait_gone(record.worker_id)
        assert hive.store.rows == {}


async def test_a_hive_that_leaves_its_workers_does_not_leave_one_that_is_gone():
    hive = FakeHive(options=replace(FakeHive().options, leaves_workers=True))
    async with running(hive):
        record = await ready_worker(hive, FAILING)
        hive.node.sweep_delay = 60.0
        await crash(hive)
        await hive.pool.delete(record.worker_id)
        assert await hive.pool.leave(30.0) == [record.worker_id]
        assert hive.store.rows[record.worker_id].ending is Ending.FORGET


async def test_a_delete_while_the_hive_leaves_is_carried_out():
    hive = FakeHive(options=replace(FakeHive().options, leaves_workers=True))
    async with running(hive):
        busy = await ready_worker(hive, FAILING)
        hive.node.deaf = True
        other = await ready_worker(hive, replace(FAILING, model_ref="synthetic:y"))
        hive.routes.acquire(busy.worker_id)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hive.pool.leave, 30.0)
            await anyio.sleep(15)
            await hive.pool.delete(other.worker_id)
        assert hive.node.processes[0].alive
        assert not hive.node.processes[1].alive


async def test_the_message_names_what_is_left_and_the_journal_does_not_fill_with_it():
    hive = FakeHive()
    async with running(hive):
        record = await ready_worker(hive, FAILING)
        hive.node.sweep_failures = FOR_EVER
        await crash(hive)
        await anyio.sleep(600)
        assert record.worker.state is S.STARTING
        assert record.worker.message == "Not started yet, tried again and again: too many open files."
        before = hive.pool.journal.last_number
        await hive.pool.delete(record.worker_id)
        await anyio.sleep(3600)
        assert "what is left of it is still there" in record.worker.message
        assert hive.pool.journal.last_number - before < 100


async def test_a_worker_that_is_condemned_before_its_fork_is_started_again():
    hive = FakeHive()
    async with running(hive):
        record = await ready_worker(hive, FAILING)
        hive.node.sweep_delay = 5.0
        await crash(hive)
        await anyio.sleep(2)
        hive.pool.end(record.worker_id, ev.Condemned(ExitReason.LOAD_TIMEOUT, "too long"))
        await anyio.sleep(60)
        assert len(hive.node.launches) == 2


@pytest.mark.parametrize("how", ["deleted", "clean end"])
async def test_when_the_one_that_tries_is_gone_the_next_one_tries_at_once(how):
    async with running(FakeHive()) as hive:
        first, second = await ready_worker(hive, FAILING), await ready_worker(hive, FAILING)
        while {first.worker.state, second.worker.state} != {S.FAILED}:
            for process in hive.node.processes:
                process.end(CRASH)
            await settled()
            await anyio.sleep(5)
        await anyio.sleep(62)
        trying, waiting = (first, second) if first.worker.state is S.STARTING else (second, first)
        await make_ready(hive, trying)
        await anyio.sleep(61)
        assert waiting.worker.state is S.FAILED
        assert f"worker '{trying.worker_id}' makes the one try" in waiting.worker.message
        if how == "deleted":
            await hive.pool.delete(trying.worker_id, force=True)
        else:
            await crash(hive, Exit(ExitReason.STOPPED, code=0))
        await settled()
        assert waiting.worker.state is S.STARTING


async def test_a_try_that_could_not_be_made_blocks_nobody():
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive, FAILING)
        await open_circuit(hive, record)
        await hive.pool.delete(record.worker_id)
        await anyio.sleep(61)
        hive.node.fail_next = OSError("no memory for a fork")
        never = await hive.pool.spawn(replace(FAILING, restart=Restart.NEVER))
        await settled()
        assert never.worker.state is S.FAILED
        await hive.pool.spawn(FAILING)


async def test_workers_that_were_only_refused_open_no_circuit_in_the_next_hive():
    refused = Exit(ExitReason.CRASHED, message="its process could not be started: no memory")
    rows = [
        replace(ROW, spec=replace(ROW.spec, worker_id=f"w-{n}"), identity=None, last_exit=refused) for n in range(6)
    ]
    hive = FakeHive(store=FakeStore(rows))
    async with running(hive):
        assert {record.worker.state for record in hive.registry} == {S.BACKOFF}
        assert hive.pool.circuits.activations == 0


async def test_the_circuit_of_nobody_closes():
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive, FAILING)
        await open_circuit(hive, record)
        await hive.pool.delete(record.worker_id)
        await anyio.sleep(400)
        assert hive.pool.circuits.report_of(record.worker.spec).state is CircuitState.CLOSED
        assert hive.pool.circuits.open_by_model() == {"synthetic:x": 0}


class TestAdoption:
    def hive(self, row=ROW):
        hive = FakeHive(store=FakeStore([row]))
        hive.probe.answering[URL] = Reply(200, b"w-old")
        return hive, hive.node.add_living(ROW.identity)

    async def test_a_shortage_that_lasts_is_not_blamed_on_the_worker(self):
        hive, process = self.hive()
        hive.node.blind = 8
        start = anyio.current_time()
        async with running(hive):
            assert anyio.current_time() - start < 6
            await anyio.sleep(10)
            assert hive.registry.get("w-old").worker.state is S.READY
            assert process.signals == []

    async def test_its_row_keeps_its_address_while_it_is_looked_at(self):
        hive, _ = self.hive()
        hive.probe.answering.clear()
        hive.probe.silent.add(URL)
        async with anyio.create_task_group() as tasks:
            await tasks.start(hive.pool.run)
            await hive.pool.adopt(await hive.store.load())
            await anyio.sleep(2)
            assert hive.store.rows["w-old"].url == URL
            tasks.cancel_scope.cancel()

    @pytest.mark.parametrize("ending", [Ending.CONDEMNED, Ending.AGAIN])
    async def test_a_delete_during_the_look_is_no_illegal_event(self, ending):
        why = Exit(ExitReason.UNHEALTHY, message="hung") if ending is Ending.CONDEMNED else None
        hive, process = self.hive(replace(ROW, ending=ending, last_exit=why))
        hive.node.blind = 1
        async with anyio.create_task_group() as tasks:
            await tasks.start(hive.pool.run)
            await hive.pool.adopt(await hive.store.load())
            await settled()
            await hive.pool.delete("w-old")
            await hive.pool.wait_adopted()
            await hive.pool.wait_gone("w-old")
            assert not process.alive
            assert hive.pool.illegal_events == 0
            tasks.cancel_scope.cancel()
