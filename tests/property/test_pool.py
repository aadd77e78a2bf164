"""Any story of a whole pool: workers of its own and by hand, deaths, deletes and restarts, in any order.

The real pool, supervisors and heartbeats run on a jumping clock over fakes whose forks and removals take their time.
"""

import contextlib

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from rbee.core import auth
from rbee.core.errors import RequestError
from rbee.core.exits import Exit, ExitReason
from rbee.core.launch import Telemetry
from rbee.core.worker import WorkerSpec, WorkerState
from rbee.hive.announcements import Announcement
from rbee.hive.heartbeats import Heartbeats
from rbee.testing import FakeHive

ANYBODY = auth.Principal(auth.Role.ADMIN, trusted=False)
SPEC = WorkerSpec(worker_id="", model_ref="synthetic:x", engine="synthetic")
WHICH = st.integers(0, 3)
STATES = st.sampled_from(["loading", "ready", "failed"])
STEPS = st.one_of(
    st.just(("spawn",)),
    st.tuples(st.just("announce"), WHICH, STATES, st.booleans()),
    st.tuples(st.just("beat"), WHICH),
    st.tuples(st.just("exit"), WHICH),
    st.tuples(st.just("engine_exit"), WHICH),
    st.tuples(st.just("delete"), WHICH, st.booleans()),
    st.tuples(st.just("restart"), WHICH),
    st.tuples(st.just("by_hand"), st.sampled_from(["a", "b"]), STATES, st.integers(5001, 5002)),
    st.tuples(st.just("request"), WHICH),
    st.tuples(st.just("sleep"), st.sampled_from([0.1, 0.4, 5.0, 35.0, 70.0])),
)


class Story:
    def __init__(self, deaf):
        self.hive = FakeHive()
        self.hive.node.deaf = deaf
        self.hive.node.fork_delay, self.hive.node.forget_delay = 0.3, 0.7
        self.heartbeats = Heartbeats(self.hive.registry, 30.0, 60.0, self.hive.pool.went_stale)

    def record(self, which):
        records = list(self.hive.registry)
        return records[which % len(records)] if records else None

    async def take(self, step):
        """What the world does next; a refusal is an answer like any other."""
        name, *details = step
        if name in ("spawn", "by_hand", "sleep"):
            await getattr(self, name)(*details)
        elif (record := self.record(details[0])) is not None:
            await getattr(self, name)(record, *details[1:])

    async def spawn(self):
        await self.hive.pool.spawn(SPEC)

    async def sleep(self, seconds):
        await trio.sleep(seconds)

    async def announce(self, record, state, with_engine):
        engine = self.hive.node.add_other(9000 + len(self.hive.node.others)).identity.pid if with_engine else None
        incarnation = record.worker.incarnation
        said = Announcement(
            record.worker_id,
            state,
            "http://127.0.0.1:8081",
            "synthetic:x",
            "cpu",
            0,
            record.worker.pid or 1,
            4,
            incarnation,
            engine,
        )
        await self.hive.reception.announce(self.hive.speaker(record.worker_id, incarnation), said)

    async def by_hand(self, name, state, pid):
        said = Announcement(name, state, "http://127.0.0.1:8500", "synthetic:y", "cpu", 0, pid, 1)
        await self.hive.reception.announce(ANYBODY, said)

    async def beat(self, record):
        self.heartbeats.beat(record, None, True, Telemetry())

    async def exit(self, record):
        for process in self.hive.node.processes:
            if process.identity.pid == record.worker.pid:
                process.end(Exit(ExitReason.CRASHED, code=1))

    async def engine_exit(self, record):
        engine = self.hive.node.others.get(record.worker.engine_pid)
        if engine is not None:
            engine.end(Exit(ExitReason.CRASHED))

    async def delete(self, record, force):
        await self.hive.pool.delete(record.worker_id, force=force)

    async def restart(self, record):
        await self.hive.pool.restart(record.worker_id)

    async def request(self, record):
        self.hive.routes.acquire(record.worker_id)

    def check(self):
        hive = self.hive
        known = {record.worker_id for record in hive.registry}
        assert known == {route.worker_id for route in hive.routes}
        alive = [process.identity.pid for process in hive.node.processes if process.alive]
        owned = [record.worker.pid for record in hive.registry if not record.worker.spec.external]
        assert all(owned.count(pid) == 1 for pid in alive), "every living process is some worker's"
        for record in hive.registry:
            worker = record.worker
            assert worker.message
            if worker.state in (WorkerState.FAILED, WorkerState.BACKOFF) and not worker.spec.external:
                assert worker.pid is None
        assert hive.pool.illegal_events == 0


async def tell(steps, deaf):
    story = Story(deaf)
    async with trio.open_nursery() as tasks:
        await tasks.start(lambda task_status: story.hive.pool.run(task_status=task_status))
        await story.hive.pool.wait_adopted()
        tasks.start_soon(story.heartbeats.run)
        for step in steps:
            with contextlib.suppress(RequestError):
                await story.take(step)
            await trio.testing.wait_all_tasks_blocked()
            story.check()
        assert await story.hive.pool.stop(30.0) == []
        assert not any(process.alive for process in story.hive.node.processes)
        assert len(story.hive.registry) == 0
        assert story.hive.store.rows == {}
        assert list(story.hive.routes) == []
        tasks.cancel_scope.cancel()


@given(st.lists(STEPS, max_size=25), st.booleans())
@settings(max_examples=300, deadline=None)
def test_no_story_leaves_a_process_or_ends_the_hive(steps, deaf):
    trio.run(tell, steps, deaf, clock=trio.testing.MockClock(autojump_threshold=0))
