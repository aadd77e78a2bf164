"""A pool in a test: running, with workers that are ready, crash and come back."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio

from rbee.core.exits import Exit, ExitReason
from rbee.core.worker import Restart, WorkerSpec
from rbee.hive.announcements import Announcement
from rbee.testing import FakeHive

FAILING = WorkerSpec(worker_id="", model_ref="synthetic:x", engine="synthetic", restart=Restart.ON_FAILURE)
CRASH = Exit(ExitReason.CRASHED, code=1)


@asynccontextmanager
async def running(hive: FakeHive) -> AsyncIterator[FakeHive]:
    """*hive* with its pool running, past the time in which it looks for the workers of the one before."""
    async with anyio.create_task_group() as tasks:
        await tasks.start(hive.pool.run)
        await hive.pool.adopt(await hive.store.load())
        await hive.pool.wait_adopted()
        await settled()
        yield hive
        tasks.cancel_scope.cancel()


async def settled():
    await anyio.wait_all_tasks_blocked()


def announcement(worker_id, state="ready", **changes):
    said = Announcement(worker_id, state, "http://127.0.0.1:8081", "synthetic:x", "cpu", 0, 1000, 4)
    return replace(said, **changes)


async def make_ready(hive, record, **changes):
    """Let the life that runs now say that it is ready."""
    await settled()
    worker = record.worker
    said = announcement(record.worker_id, incarnation=worker.incarnation, pid=worker.pid, **changes)
    await hive.reception.announce(hive.speaker(record.worker_id, worker.incarnation), said)


async def ready_worker(hive, spec, **changes):
    record = await hive.pool.spawn(spec)
    await make_ready(hive, record, model_ref=spec.model_ref, **changes)
    return record


async def crash(hive, exit_=CRASH):
    """End the newest process."""
    hive.node.processes[-1].end(exit_)
    await settled()
