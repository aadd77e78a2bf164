"""Taking over the workers of the hive before, on a jumping clock."""

from dataclasses import replace

import anyio
import pytest

from rbee.core import auth
from rbee.core.errors import Forbidden, InvalidField, OlderIncarnation, ShuttingDown, WorkerNotFound
from rbee.core.exits import Exit, ExitReason
from rbee.core.launch import Ending, ProcessIdentity, Reply, StoredWorker, Telemetry
from rbee.core.routing import Standing
from rbee.core.worker import Restart, WorkerState
from rbee.hive.heartbeats import Heartbeats
from rbee.testing import SECRET, FakeHive, FakeStore
from tests.unit.hive.pools import FAILING, announcement, crash, ready_worker, running, settled

pytestmark = pytest.mark.anyio
S = WorkerState
URL = "http://127.0.0.1:8085"
IDENTITY = ProcessIdentity(77, 1, "boot")
ROW = StoredWorker(
    replace(FAILING, worker_id="w-old"),
    incarnation=3,
    identity=IDENTITY,
    url=URL,
    engine_pid=78,
    slots=4,
    restart_count=2,
    started_at="2026-01-02T03:04:05+00:00",
)


def hive_with(*rows):
    hive = FakeHive(store=FakeStore(rows))
    hive.probe.answering[URL] = Reply(200, b'{"data": [{"id": "w-old"}]}')
    hive.node.add_other(78)
    return hive


def beats(hive):
    return Heartbeats(hive.registry, 30.0, 60.0, hive.pool.went_stale)


async def test_a_living_worker_that_answers_to_its_own_key_is_as_it_was():
    hive = hive_with(ROW)
    process = hive.node.add_living(IDENTITY)
    async with running(hive):
        record = hive.registry.get("w-old")
        worker = record.worker
        assert (worker.state, worker.pid, worker.engine_pid, worker.url) == (S.READY, 77, 78, URL)
        assert (worker.incarnation, worker.restart_count, record.port) == (3, 2, 8085)
        assert record.started_at.isoformat() == ROW.started_at
        assert hive.probe.asked == [(URL, "/v1/models", auth.engine_key(SECRET, "w-old", 3))]
        assert hive.node.launches == []
        assert process.signals == []
        (route,) = hive.routes.candidates("synthetic:x")
        assert (route.standing, route.port) == (Standing.READY, 8085)


async def test_a_worker_taken_over_is_supervised_like_any_other():
    hive = hive_with(ROW)
    process = hive.node.add_living(IDENTITY)
    async with running(hive):
        record = hive.registry.get("w-old")
        process.end(Exit(ExitReason.CRASHED, signal_number=11))
        await settled()
        assert record.worker.state is S.BACKOFF
        assert hive.node.swept == [("w-old", 3)]
        await anyio.sleep(1.5)
        assert hive.node.launches[0].incarnation == 4
        await hive.pool.delete("w-old", force=True)
        await hive.pool.wait_gone("w-old")
        assert hive.store.rows == {}


@pytest.mark.parametrize("body", [b"", b'{"data": [{"id": "w-stranger"}]}'])
async def test_a_stranger_on_its_port_is_not_taken_for_it(body):
    hive = hive_with(ROW)
    process = hive.node.add_living(IDENTITY)
    hive.probe.answering[URL] = Reply(200, body)
    async with running(hive):
        record = hive.registry.get("w-old")
        await settled()
        assert process.signals == ["TERM"]
        assert record.worker.last_exit.reason is ExitReason.UNHEALTHY
        assert "did not answer to its key" in record.worker.message
        assert record.worker.state is S.BACKOFF


async def test_a_worker_that_answers_nobody_is_ended_after_its_time_and_holds_up_no_other():
    silent = replace(
        ROW, spec=replace(ROW.spec, worker_id="w-mute"), identity=replace(IDENTITY, pid=79), url="http://m:1"
    )
    hive = hive_with(ROW, silent)
    hive.node.add_living(IDENTITY)
    mute = hive.node.add_living(silent.identity)
    hive.probe.silent.add("http://m:1")
    start = anyio.current_time()
    async with running(hive):
        assert anyio.current_time() - start == 5.0
        assert hive.registry.get("w-old").worker.state is S.READY
        await settled()
        assert mute.signals == ["TERM"]


async def test_a_beat_counts_as_an_answer():
    hive = hive_with(ROW)
    process = hive.node.add_living(IDENTITY)
    hive.probe.answering.clear()
    hive.probe.silent.add(URL)
    heartbeats = beats(hive)
    async with anyio.create_task_group() as tasks:
        await tasks.start(hive.pool.run)
        await hive.pool.adopt(await hive.store.load())
        await anyio.sleep(2)
        record = hive.registry.get("w-old")
        heartbeats.beat(record, 3, True, Telemetry())
        await hive.pool.wait_adopted()
        assert (record.worker.state, record.unannounced) == (S.LOADING, True)
        assert process.signals == []
        with pytest.raises(WorkerNotFound, match="announce it again"):
            heartbeats.beat(record, 3, True, Telemetry())
        said = announcement("w-old", incarnation=3, pid=77, url=URL)
        await hive.reception.announce(hive.speaker("w-old", 3), said)
        assert (record.worker.state, record.unannounced) == (S.READY, False)
        heartbeats.beat(record, 3, True, Telemetry())
        tasks.cancel_scope.cancel()


async def test_a_worker_that_was_still_loading_goes_on_loading_and_says_when_it_is_ready():
    hive = hive_with(replace(ROW, url="", engine_pid=None, slots=0))
    hive.node.add_living(IDENTITY)
    async with running(hive):
        record = hive.registry.get("w-old")
        assert (record.worker.state, record.unannounced) == (S.LOADING, True)
        assert hive.probe.asked == []
        await hive.reception.announce(hive.speaker("w-old", 3), announcement("w-old", incarnation=3, pid=77, url=URL))
        assert record.worker.state is S.READY
        await settled()
        assert hive.store.rows["w-old"].url == URL


async def test_an_announcement_overtakes_the_look_for_its_process():
    hive = hive_with(replace(ROW, url=""))
    hive.node.add_living(IDENTITY)
    async with anyio.create_task_group() as tasks:
        await tasks.start(hive.pool.run)
        await hive.pool.adopt(await hive.store.load())
        await hive.reception.announce(hive.speaker("w-old", 3), announcement("w-old", incarnation=3, pid=77, url=URL))
        await hive.pool.wait_adopted()
        await settled()
        assert hive.registry.get("w-old").worker.state is S.READY
        assert not hive.registry.get("w-old").unannounced
        tasks.cancel_scope.cancel()


async def test_what_ended_while_no_hive_ran_is_restarted_by_its_policy_and_says_why():
    hive = hive_with(ROW)
    hive.node.last_words["w-old", 3] = Exit(ExitReason.CRASHED, code=1, message="CUDA error")
    async with running(hive):
        record = hive.registry.get("w-old")
        assert record.worker.state is S.BACKOFF
        assert record.worker.message == "Restarting in 1.0 s after exit code 1 (attempt 1 of 5 in 300 s): CUDA error."
        assert hive.node.swept == [("w-old", 3)]
        await anyio.sleep(1.5)
        assert hive.node.launches[0].incarnation == 4


async def test_one_that_died_before_it_said_where_it_serves_gets_a_port_for_its_next_life():
    hive = hive_with(replace(ROW, url=""))
    async with running(hive):
        await anyio.sleep(1.5)
        assert hive.node.launches[0].port in hive.options.ports
        assert hive.registry.get("w-old").port == hive.node.launches[0].port


async def test_what_ended_and_shall_not_be_restarted_is_listed_as_failed():
    hive = hive_with(replace(ROW, spec=replace(ROW.spec, restart=Restart.NEVER)))
    async with running(hive):
        worker = hive.registry.get("w-old").worker
        assert worker.state is S.FAILED
        assert "it ended while no hive ran" in worker.message


async def test_the_next_life_has_an_incarnation_that_no_process_had():
    hive = hive_with(StoredWorker(replace(FAILING, worker_id="w-early"), 5))
    async with running(hive):
        assert hive.node.swept == [("w-early", 5)]
        await anyio.sleep(1.5)
        assert hive.node.launches[0].incarnation == 6


async def test_spawns_and_restarts_wait_until_it_is_known_what_lives():
    silent = replace(ROW, url="http://m:1")
    dead = replace(ROW, spec=replace(ROW.spec, worker_id="w-dead"), identity=replace(IDENTITY, pid=79))
    hive = hive_with(silent, dead)
    hive.node.add_living(IDENTITY)
    hive.probe.silent.add("http://m:1")
    async with anyio.create_task_group() as tasks:
        await tasks.start(hive.pool.run)
        await hive.pool.adopt(await hive.store.load())
        tasks.start_soon(hive.pool.spawn, FAILING)
        await anyio.sleep(4.5)
        assert hive.node.launches == []
        await hive.pool.wait_adopted()
        await settled()
        assert {launch.spec.worker_id for launch in hive.node.launches} >= {"w-dead"}
        assert len(hive.node.launches) == 2
        tasks.cancel_scope.cancel()


async def test_a_stop_ends_what_is_being_looked_for():
    hive = hive_with(replace(ROW, url="http://m:1"))
    process = hive.node.add_living(IDENTITY)
    hive.probe.silent.add("http://m:1")
    async with anyio.create_task_group() as tasks:
        await tasks.start(hive.pool.run)
        await hive.pool.adopt(await hive.store.load())
        await settled()
        assert await hive.pool.stop(30.0) == []
        assert not process.alive
        assert hive.store.rows == {}
        tasks.cancel_scope.cancel()


async def test_a_deletion_during_the_look_reaches_the_process():
    hive = hive_with(replace(ROW, url="http://m:1"))
    process = hive.node.add_living(IDENTITY)
    hive.probe.silent.add("http://m:1")
    async with anyio.create_task_group() as tasks:
        await tasks.start(hive.pool.run)
        await hive.pool.adopt(await hive.store.load())
        await hive.pool.delete("w-old")
        await hive.pool.wait_adopted()
        await hive.pool.wait_gone("w-old")
        assert not process.alive
        tasks.cancel_scope.cancel()


class TestWithoutRows:
    """A hive that lost its database hears of its workers from themselves."""

    def lost(self):
        hive = FakeHive()
        process = hive.node.add_living(IDENTITY)
        hive.node.marked["w-lost", 3] = process
        return hive, process

    def said(self, **changes):
        own = replace(FAILING, worker_id="w-lost", ctx_size=2048, idle_timeout=9.0)
        return announcement("w-lost", incarnation=3, pid=77, url=URL, own=own, **changes)

    async def test_one_with_a_genuine_token_is_taken_as_what_it_says(self):
        hive, process = self.lost()
        async with running(hive):
            record = await hive.reception.announce(hive.speaker("w-lost", 3), self.said())
            worker = record.worker
            assert (worker.state, worker.incarnation, worker.spec.ctx_size) == (S.READY, 3, 2048)
            assert (worker.spec.restart, worker.spec.idle_timeout) == (Restart.ON_FAILURE, 9.0)
            await settled()
            assert record.worker.pid == 77
            assert hive.store.rows["w-lost"].identity == IDENTITY
            assert hive.store.rows["w-lost"].url == URL
            process.end(Exit(ExitReason.CRASHED, code=1))
            await settled()
            assert record.worker.state is S.BACKOFF

    async def test_one_that_still_loads_is_taken_too(self):
        hive, _ = self.lost()
        async with running(hive):
            record = await hive.reception.announce(hive.speaker("w-lost", 3), self.said(state="loading"))
            await settled()
            assert (record.worker.state, record.unannounced) == (S.LOADING, False)

    async def test_one_without_the_mark_is_refused(self):
        hive, _ = self.lost()
        async with running(hive):
            with pytest.raises(OlderIncarnation, match="mark"):
                await hive.reception.announce(hive.speaker("w-other", 3), replace(self.said(), worker_id="w-other"))
            with pytest.raises(OlderIncarnation, match="mark"):
                await hive.reception.announce(hive.speaker("w-lost", 3), replace(self.said(), pid=1234))
            assert len(hive.registry) == 0

    async def test_one_that_this_hive_has_ended_does_not_come_back(self):
        async with running(FakeHive()) as hive:
            record = await ready_worker(hive, FAILING)
            await hive.pool.delete(record.worker_id, force=True)
            await hive.pool.wait_gone(record.worker_id)
            late = announcement(record.worker_id, incarnation=1)
            with pytest.raises(OlderIncarnation, match="ended"):
                await hive.reception.announce(hive.speaker(record.worker_id), late)

    async def test_one_that_says_nothing_of_itself_is_kept_and_not_restarted(self):
        hive, process = self.lost()
        async with running(hive):
            record = await hive.reception.announce(hive.speaker("w-lost", 3), replace(self.said(), own=None))
            process.end(Exit(ExitReason.CRASHED, code=1))
            await settled()
            assert record.worker.state is S.FAILED

    async def test_a_url_that_is_not_ours_and_an_unknown_engine_are_refused(self):
        hive, _ = self.lost()
        async with running(hive):
            with pytest.raises(InvalidField, match="loopback"):
                await hive.reception.announce(hive.speaker("w-lost", 3), replace(self.said(), url="http://10.0.0.1:1"))
            odd = replace(self.said(), own=replace(FAILING, engine="nobody"))
            with pytest.raises(InvalidField, match="nobody"):
                await hive.reception.announce(hive.speaker("w-lost", 3), odd)

    async def test_a_client_may_not_pretend_to_be_one(self):
        hive, _ = self.lost()
        async with running(hive):
            with pytest.raises(Forbidden):
                await hive.reception.announce(auth.Principal(auth.Role.CLIENT), self.said())


class TestLeaving:
    async def test_workers_live_on_and_their_rows_stay(self):
        hive = FakeHive()
        async with running(hive):
            record = await ready_worker(hive, FAILING)
            waiting = await ready_worker(hive, replace(FAILING, model_ref="synthetic:y"))
            await crash(hive)
            assert await hive.pool.leave(30.0) == []
            assert hive.node.processes[0].alive
            assert hive.node.processes[0].signals == []
            assert set(hive.store.rows) == {record.worker_id, waiting.worker_id}
            assert hive.node.forgotten == []
            assert list(hive.routes) == []
            assert list(hive.registry) == []
            with pytest.raises(ShuttingDown):
                await hive.pool.spawn(FAILING)
            hive.node.marked[record.worker_id, 1] = hive.node.processes[0]
            with pytest.raises(ShuttingDown):
                await hive.reception.announce(hive.speaker(record.worker_id), announcement(record.worker_id))

    async def test_requests_in_flight_get_their_time(self):
        async with running(FakeHive()) as hive:
            record = await ready_worker(hive, FAILING)
            hive.routes.acquire(record.worker_id)
            start = anyio.current_time()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hive.pool.leave, 30.0)
                await anyio.sleep(7)
                hive.routes.release(record.worker_id)
            assert anyio.current_time() - start == 7

    async def test_requests_that_do_not_end_do_not_hold_it_for_ever_and_a_second_signal_not_at_all(self):
        options = replace(FakeHive().options, leaves_workers=True)
        async with running(FakeHive(options=options)) as hive:
            record = await ready_worker(hive, FAILING)
            hive.routes.acquire(record.worker_id)
            start = anyio.current_time()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hive.pool.leave, 30.0)
                await anyio.sleep(3)
                hive.pool.force_stop()
            assert anyio.current_time() - start == 3
            assert hive.node.processes[0].alive

    @pytest.mark.parametrize("deaf", [False, True])
    async def test_what_somebody_wants_gone_is_ended_though_its_requests_do_not_end(self, deaf):
        hive = FakeHive()
        hive.node.deaf = deaf
        async with running(hive):
            record = await ready_worker(hive, FAILING)
            hive.routes.acquire(record.worker_id)
            await hive.pool.delete(record.worker_id)
            assert await hive.pool.leave(30.0) == []
            assert not hive.node.processes[0].alive
            assert hive.store.rows == {}

    async def test_two_signals_before_it_has_begun_end_no_worker(self):
        options = replace(FakeHive().options, leaves_workers=True)
        async with running(FakeHive(options=options)) as hive:
            record = await ready_worker(hive, FAILING)
            hive.routes.acquire(record.worker_id)
            start = anyio.current_time()
            hive.pool.force_stop()
            assert await hive.pool.leave(30.0) == []
            assert anyio.current_time() == start
            assert hive.node.processes[0].signals == []

    async def test_a_fork_under_way_is_written_down_before_it_is_left(self):
        hive = FakeHive()
        hive.node.fork_delay = 2.0
        async with running(hive):
            record = await hive.pool.spawn(FAILING)
            await settled()
            assert await hive.pool.leave(30.0) == []
            assert hive.store.rows[record.worker_id].identity == hive.node.processes[0].identity
            assert hive.node.processes[0].alive


class TestWhatAnEarlierHiveHadBegun:
    """What somebody was promised, or what a worker was condemned for, outlives the hive."""

    async def test_a_delete_is_written_down_before_it_is_answered(self):
        async with running(FakeHive()) as hive:
            record = await ready_worker(hive, FAILING)
            hive.routes.acquire(record.worker_id)
            await hive.pool.delete(record.worker_id)
            assert record.worker.state is S.DRAINING
            assert hive.store.rows[record.worker_id].ending is Ending.FORGET
            await settled()
            assert [row.ending for row in hive.store.history].count(Ending.FORGET) == 1

    @pytest.mark.parametrize("lives", [True, False])
    async def test_a_deleted_worker_stays_deleted(self, lives):
        hive = hive_with(replace(ROW, ending=Ending.FORGET))
        process = hive.node.add_living(IDENTITY) if lives else None
        async with running(hive):
            await hive.pool.wait_gone("w-old")
            assert process is None or process.signals == ["TERM"]
            assert (hive.store.rows, hive.node.launches, list(hive.pool.circuits)) == ({}, [], [])
            assert hive.node.swept == [("w-old", 3)]

    @pytest.mark.parametrize("lives", [True, False])
    async def test_a_restart_that_was_asked_for_is_made(self, lives):
        hive = hive_with(replace(ROW, ending=Ending.AGAIN))
        process = hive.node.add_living(IDENTITY) if lives else None
        async with running(hive):
            await settled()
            assert process is None or process.signals == ["TERM"]
            assert [launch.incarnation for launch in hive.node.launches] == [4]
            assert list(hive.pool.circuits) == []

    @pytest.mark.parametrize("lives", [True, False])
    async def test_a_condemned_worker_is_ended_and_judged_for_what_it_was_condemned(self, lives):
        why = Exit(ExitReason.OVER_MEMORY, message="it used 9 GiB")
        hive = hive_with(replace(ROW, ending=Ending.CONDEMNED, last_exit=why))
        process = hive.node.add_living(IDENTITY) if lives else None
        async with running(hive):
            await settled()
            worker = hive.registry.get("w-old").worker
            assert process is None or process.signals == ["TERM"]
            assert (worker.state, worker.last_exit.reason) == (S.BACKOFF, ExitReason.OVER_MEMORY)
            assert "it used 9 GiB" in worker.message

    async def test_how_it_ended_is_known_to_the_next_hive_too(self):
        first = FakeHive()
        async with running(first):
            record = await ready_worker(first, replace(FAILING, restart=Restart.NEVER))
            await crash(first)
            await settled()
            row = first.store.rows[record.worker_id]
        second = hive_with(row)
        async with running(second):
            worker = second.registry.get(record.worker_id).worker
            assert (worker.state, worker.last_exit) == (S.FAILED, Exit(ExitReason.CRASHED, code=1))

    async def test_workers_that_heard_of_no_hive_come_back_and_open_no_circuit(self):
        rows = [
            replace(ROW, spec=replace(ROW.spec, worker_id=f"w-{number}"), identity=replace(IDENTITY, pid=500 + number))
            for number in range(6)
        ]
        hive = hive_with(*rows)
        for row in rows:
            hive.node.last_words[row.spec.worker_id, 3] = Exit(ExitReason.STALE, code=1, message="no hive answered")
        async with running(hive):
            assert {record.worker.state for record in hive.registry} == {S.BACKOFF}
            assert "not counted as a failure" in hive.registry.get("w-0").worker.message
            await anyio.sleep(2)
            assert len(hive.node.launches) == 6
            assert list(hive.pool.circuits) == []

    async def test_a_row_that_could_not_be_removed_is_removed_later(self):
        async with running(FakeHive()) as hive:
            record = await ready_worker(hive, FAILING)
            hive.store.fail = OSError("disk full")
            await hive.pool.delete(record.worker_id, force=True)
            await hive.pool.wait_gone(record.worker_id)
            assert record.worker_id in hive.store.rows
            hive.store.fail = None
            await anyio.sleep(6)
            assert hive.store.rows == {}

    async def test_a_restart_by_hand_waits_until_it_is_known_what_lives(self):
        dead = replace(ROW, spec=replace(ROW.spec, worker_id="w-dead"), identity=replace(IDENTITY, pid=79))
        hive = hive_with(replace(ROW, url="http://m:1"), dead)
        hive.node.add_living(IDENTITY)
        hive.probe.silent.add("http://m:1")
        async with anyio.create_task_group() as tasks:
            await tasks.start(hive.pool.run)
            await hive.pool.adopt(await hive.store.load())
            await settled()
            await hive.pool.restart("w-dead")
            await anyio.sleep(4.5)
            assert hive.node.launches == []
            await hive.pool.wait_adopted()
            await settled()
            assert [launch.spec.worker_id for launch in hive.node.launches] == ["w-dead"]
            tasks.cancel_scope.cancel()
