"""What a claim goes through in the life of its worker, and what must not keep others from theirs."""

import anyio
import pytest

from rbee.core.errors import ModelNotFound
from rbee.core.worker import WorkerState
from rbee.testing import FakeHive, FakeLibrary
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
