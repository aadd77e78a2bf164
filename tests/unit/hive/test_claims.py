"""What a claim goes through in the life of its worker, and what must not keep others from theirs."""

from dataclasses import replace

import anyio
import pytest

from rbee.core.errors import DoesNotFit, ModelNotFound
from rbee.core.events import Condemned
from rbee.core.exits import ExitReason
from rbee.core.launch import Footprint
from rbee.core.worker import Restart, WorkerState
from rbee.hive.restarts import REFUSED_DELAY
from rbee.testing import GIB, FakeHive, FakeLibrary, FakeNode, FakePeaks
from tests.unit.hive.pools import CRASH, crash, make_ready, ready_worker, running, settled
from tests.unit.hive.test_admission import gpu, holding, on_gpu, room, took

pytestmark = pytest.mark.anyio
S = WorkerState


class SlowLibrary(FakeLibrary):
    """Its disk answers nobody while ``hangs``, and is given up after ten seconds, as ours does."""

    def __init__(self):
        super().__init__()
        self.hangs = False

    async def locate(self, ref):
        if self.hangs:
            await anyio.sleep(10)
            if self.hangs:
                raise ModelNotFound("The disk did not answer.")
        return await super().locate(ref)


async def test_a_model_disk_that_hangs_holds_up_neither_other_spawns_nor_the_end():
    hive = FakeHive(library=SlowLibrary())
    async with running(hive):
        for _ in range(3):
            await ready_worker(hive, holding(1))
        hive.library.hangs = True
        for process in hive.node.processes:
            process.end(CRASH)
        # All three ask to be started again, and wait for that disk.
        await anyio.sleep(1.5)
        with anyio.fail_after(1):
            async with hive.pool.admission():
                pass
        await anyio.sleep(10)
        messages = [record.worker.message for record in hive.registry]
        assert all(message.startswith("Not restarted yet") for message in messages)
        assert all("did not answer" in message for message in messages)


async def test_a_worker_that_is_started_by_hand_while_it_asks_keeps_the_place_it_was_started_in():
    hive = FakeHive(library=SlowLibrary())
    hive.machine.devices = (gpu(0, 20), gpu(1, 10))
    async with running(hive):
        record = await ready_worker(hive, on_gpu(4))
        await crash(hive)
        hive.library.hangs = True
        await anyio.sleep(1.5)  # Its own restart waits for the disk, for ten seconds.
        hive.library.hangs = False
        await hive.pool.restart(record.worker_id)
        await anyio.sleep(1)
        hive.machine.devices = (gpu(0, 5), gpu(1, 20))
        await anyio.sleep(10)
        launch = hive.node.launches[-1]
        assert (len(hive.node.launches), record.placement) == (2, launch.placement)


async def test_memory_taken_since_the_last_sampling_is_not_reserved_again_once_ready():
    hive = FakeHive()
    hive.machine.memory = room(9)
    async with running(hive):
        first = await ready_worker(hive, holding(4))
        took(hive, first, 4)
        await hive.pool.spawn(holding(4))


async def test_one_that_was_refused_once_waits_its_delay_after_a_later_crash():
    hive = FakeHive()
    hive.machine.memory = room(9)
    async with running(hive):
        other = await ready_worker(hive, holding(1))
        record = await ready_worker(hive, holding(4))
        hive.machine.memory = room(2)
        await crash(hive)
        await anyio.sleep(1.5)
        assert record.worker.message.startswith("Not restarted yet")
        hive.machine.memory = room(9)
        await hive.pool.restart(record.worker_id)
        await make_ready(hive, record)
        await crash(hive)
        assert record.worker.state is S.BACKOFF
        await hive.pool.delete(other.worker_id)
        await settled()
        assert record.worker.state is S.BACKOFF


async def test_two_workers_of_which_one_fits_do_not_keep_each_other_from_it():
    hive = FakeHive()
    hive.machine.memory = room(9)
    async with running(hive):
        workers = [await ready_worker(hive, holding(4)) for _ in range(2)]
        hive.machine.memory = room(5)  # Another program has taken the rest.
        for process in hive.node.processes:
            process.end(CRASH)
        await anyio.sleep(2 * REFUSED_DELAY)
        await settled()
        assert sorted(record.worker.state for record in workers) == [S.BACKOFF, S.STARTING]
        # A new one does not come before those that wait.
        with pytest.raises(DoesNotFit):
            await hive.pool.spawn(holding(1))


async def test_a_worker_that_is_never_restarted_waits_for_memory_when_somebody_restarts_it():
    hive = FakeHive()
    hive.machine.memory = room(5)
    async with running(hive):
        record = await ready_worker(hive, holding(4, restart=Restart.NEVER))
        hive.machine.memory = room(2)
        await hive.pool.restart(record.worker_id)
        await settled()
        assert record.worker.state is S.BACKOFF
        hive.machine.memory = room(5)
        await anyio.sleep(REFUSED_DELAY + 1)
        await settled()
        assert record.worker.state is S.STARTING


async def test_a_life_that_was_ended_for_its_memory_is_no_measure_for_the_next():
    hive = FakeHive()
    async with running(hive):
        record = await ready_worker(hive, holding(1))
        record.footprint = Footprint(7 * GIB, 7 * GIB, peak_rss_bytes=7 * GIB)
        await hive.pool.admissions.note_measured()
        await settled()
        assert hive.peaks.saved
        hive.pool.end(record.worker_id, Condemned(ExitReason.OVER_MEMORY, "it holds too much"))
        await settled()
        assert hive.peaks.saved == {}
        again = await hive.pool.spawn(holding(1))
        assert again.claim is not None
        assert again.claim.need.ram.total_bytes < 2 * GIB


async def test_a_store_that_hangs_keeps_nobody_from_measuring():
    class Stuck(FakePeaks):
        async def save(self, key, peak):
            await anyio.sleep_forever()

    hive = FakeHive(peaks=Stuck())
    async with running(hive):
        record = await ready_worker(hive, holding(1))
        for gib in (2, 3):
            record.footprint = Footprint(peak_rss_bytes=gib * GIB)
            with anyio.fail_after(1):
                await hive.pool.admissions.note_measured()
        spawned = await hive.pool.spawn(holding(1))
        assert spawned.claim is not None
        assert spawned.claim.need.ram.total_bytes == 3 * GIB


async def test_one_that_has_failed_is_shown_where_it_ran():
    hive = FakeHive()
    hive.machine.devices = (gpu(0, 20),)
    async with running(hive):
        record = await ready_worker(hive, on_gpu(4, restart=Restart.NEVER))
        await crash(hive)
        await anyio.sleep(0.5)
        await settled()
        assert (record.worker.state, record.claim) == (S.FAILED, None)
        assert (record.placement.backend, record.placement.devices) == ("cuda", (0,))


async def test_one_that_is_ready_is_measured_once_until_it_is_sampled():
    class CountingNode(FakeNode):
        def __init__(self):
            super().__init__()
            self.measured = []

        async def measure(self, pids):
            self.measured += pids
            return await super().measure(pids)

    hive = FakeHive(node=CountingNode())
    hive.machine.memory = room(9)
    async with running(hive):
        first = await ready_worker(hive, holding(4))
        took(hive, first, 4)
        await anyio.sleep(0.1)
        for _ in range(3):
            assert (await hive.pool.consider(holding(4))).fits
        assert hive.node.measured == [first.worker.pid]
        # What it holds after a restart is another thing.
        await crash(hive)
        await anyio.sleep(1.5)
        await make_ready(hive, first)
        took(hive, first, 1)
        await anyio.sleep(0.1)
        await hive.pool.consider(holding(4))
        assert hive.node.measured[-1] == first.worker.pid


async def test_a_worker_whose_engine_the_settings_have_no_more_is_measured_all_the_same():
    hive = FakeHive()
    async with running(hive):
        record = await ready_worker(hive, holding(1))
        spec = replace(record.worker.spec, engine="cuda", engine_args=("--threads", "4"))
        record.worker = replace(record.worker, spec=spec)
        record.footprint = Footprint(peak_rss_bytes=3 * GIB)
        await hive.pool.admissions.note_measured()
        await settled()
        hive.pool.admissions.peaks.forget(record)
        assert hive.peaks.saved == {}


async def test_the_claim_of_one_that_has_failed_is_held_until_nothing_is_left_of_it():
    hive = FakeHive()
    hive.machine.memory = room(5)
    hive.node.sweep_delay = 3.0
    async with running(hive):
        record = await ready_worker(hive, holding(4, restart=Restart.NEVER))
        await crash(hive)
        assert record.worker.state is S.FAILED
        with pytest.raises(DoesNotFit):
            await hive.pool.spawn(holding(4))
        await anyio.sleep(3.5)
        await settled()
        await hive.pool.spawn(holding(4))


async def test_a_restart_by_hand_that_does_not_fit_is_no_crash():
    hive = FakeHive()
    hive.machine.memory = room(5)
    async with running(hive):
        record = await ready_worker(hive, holding(4))
        exits = []
        hive.pool.journal.subscribe(lambda entry: exits.append(entry.exit))
        hive.machine.memory = room(2)
        await hive.pool.restart(record.worker_id)
        await settled()
        assert (record.worker.state, record.worker.last_exit.reason) == (S.BACKOFF, ExitReason.STOPPED)
        assert [exit_.reason for exit_ in exits if exit_] == [ExitReason.STOPPED]


async def test_a_restart_waits_until_the_memory_of_the_life_before_is_seen_free():
    hive = FakeHive()
    hive.machine.devices = (gpu(0, 5.5, held={}),)
    async with running(hive):
        record = await ready_worker(hive, on_gpu(4))
        pid = record.worker.pid
        record.pids = (pid,)
        hive.machine.devices = (gpu(0, 1.5, held={pid: 4 * GIB}),)
        await crash(hive)
        await anyio.sleep(1.5)
        assert record.worker.state is S.BACKOFF
        hive.machine.devices = (gpu(0, 5.5, held={}),)
        await anyio.sleep(0.5)
        await settled()
        assert record.worker.state is S.STARTING


async def test_what_was_measured_last_is_stored_at_the_end():
    hive = FakeHive()
    peaks = hive.pool.admissions.peaks
    async with running(hive):
        record = await ready_worker(hive, holding(1))
        record.footprint = Footprint(peak_rss_bytes=3 * GIB)
        await hive.pool.admissions.note_measured()
        await peaks.flush()
        assert hive.peaks.saved
