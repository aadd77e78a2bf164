"""The pool and its supervisors on a jumping clock: minutes of waiting cost nothing here."""

from dataclasses import replace

import anyio
import anyio.lowlevel
import pytest

from rbee.core import auth
from rbee.core import events as ev
from rbee.core.errors import (
    AliasInUse,
    Forbidden,
    IllegalTransition,
    InvalidField,
    ModelNotFound,
    NoPortLeft,
    OlderIncarnation,
    ShuttingDown,
    WorkerIdInUse,
    WorkerNotFound,
)
from rbee.core.exits import Exit, ExitReason
from rbee.core.launch import Telemetry
from rbee.core.routing import Standing
from rbee.core.worker import TRANSITIONS, Restart, WorkerSpec, WorkerState
from rbee.hive.heartbeats import Heartbeats
from rbee.hive.reception import ReceptionOptions
from rbee.hive.supervisor import Supervisor
from rbee.testing import FakeHive, FakeStore
from tests.unit.hive.pools import announcement, running, settled

pytestmark = pytest.mark.anyio
S = WorkerState
SPEC = WorkerSpec(worker_id="", model_ref="synthetic:x", engine="synthetic", restart=Restart.NEVER)
ANYBODY = auth.Principal(auth.Role.ADMIN, trusted=False)


async def ready_worker(hive, spec=SPEC, **changes):
    record = await hive.pool.spawn(spec)
    await settled()
    said = announcement(record.worker_id, incarnation=1, pid=record.worker.pid, **changes)
    await hive.reception.announce(hive.speaker(record.worker_id), said)
    return record


async def until_gone(hive, record):
    with anyio.fail_after(3600):
        await hive.pool.wait_gone(record.worker_id)
    assert record.worker_id not in hive.registry


async def test_a_spawn_is_written_down_before_the_fork_and_again_with_its_process():
    async with running(FakeHive()) as hive:
        record = await hive.pool.spawn(SPEC)
        await settled()
        before, after = hive.store.history
        assert (before.identity, before.incarnation) == (None, 1)
        assert after.identity == hive.node.processes[0].identity
        assert record.worker.pid == 1000
        assert hive.node.launches[0].port == 8081


async def test_a_worker_that_is_ready_is_routed_with_the_key_that_only_it_knows():
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive)
        (route,) = hive.routes.candidates("synthetic:x")
        assert (route.standing, route.host, route.port, route.slots) == (Standing.READY, "127.0.0.1", 8081, 4)
        assert route.key == auth.engine_key(b"s" * 32, record.worker_id, 1)


async def test_a_process_that_ends_leaves_routing_at_once_and_the_worker_says_why():
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive)
        hive.node.processes[0].end(Exit(ExitReason.CRASHED, signal_number=11))
        await settled()
        assert record.worker.state is S.FAILED
        assert "killed by SIGSEGV" in record.worker.message
        (route,) = hive.routes.candidates("synthetic:x")
        assert route.standing is Standing.OUT
        assert hive.node.swept == [(record.worker_id, 1)]


async def test_an_engine_that_ends_takes_its_worker_out_of_routing_before_its_keeper_has_said_a_word():
    async with running(FakeHive()) as hive:
        engine = hive.node.add_other(2000)
        record = await ready_worker(hive, engine_pid=2000)
        engine.end(Exit(ExitReason.CRASHED))
        await settled()
        assert record.worker.state is S.STOPPING
        assert hive.node.processes[0].signals == []
        await anyio.sleep(10.1)
        assert hive.node.processes[0].signals == ["KILL"]
        assert record.worker.state is S.FAILED


async def test_a_deleted_worker_gets_the_time_that_its_requests_need():
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive)
        hive.routes.acquire(record.worker_id)
        await hive.pool.delete(record.worker_id)
        await anyio.sleep(12)
        assert record.worker.state is S.DRAINING
        hive.routes.release(record.worker_id)
        await until_gone(hive, record)
        assert hive.node.processes[0].signals == ["TERM"]
        assert hive.store.rows == {}
        await settled()
        assert hive.node.forgotten == [record.worker_id]
        assert hive.routes.candidates("synthetic:x") == []


async def test_a_request_that_ends_is_told_to_its_own_worker_alone(monkeypatch):
    """With hundreds of workers, telling all of them took longer than the rest of a short request."""
    told = []
    monkeypatch.setattr(Supervisor, "load_changed", lambda supervisor: told.append(supervisor.record.worker_id))
    async with running(FakeHive()) as hive:
        first, _ = await ready_worker(hive), await ready_worker(hive)
        hive.routes.acquire(first.worker_id)
        hive.routes.release(first.worker_id)
        assert told == [first.worker_id]


async def test_two_who_wait_for_the_same_worker_to_be_idle_both_hear_of_it():
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive)
        hive.routes.acquire(record.worker_id)
        supervisor = hive.pool._supervisors[record.worker_id]
        with anyio.fail_after(1):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(supervisor.wait_idle)
                tasks.start_soon(supervisor.wait_idle)
                await settled()
                hive.routes.release(record.worker_id)


async def test_a_drain_ends_after_its_time_and_a_deaf_worker_is_killed_after_its_grace():
    hive = FakeHive()
    hive.node.deaf = True
    async with running(hive):
        record = await ready_worker(hive)
        hive.routes.acquire(record.worker_id)
        start = anyio.current_time()
        await hive.pool.delete(record.worker_id)
        await hive.node.processes[0].wait()
        assert anyio.current_time() - start == 30 + 10
        assert hive.node.processes[0].signals == ["TERM", "KILL"]


async def test_a_forced_delete_waits_for_nobody():
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive)
        hive.routes.acquire(record.worker_id)
        await hive.pool.delete(record.worker_id, force=True)
        assert hive.node.processes[0].signals == ["KILL"]
        await until_gone(hive, record)


async def test_a_worker_that_is_deleted_while_it_is_forked_is_ended_as_soon_as_it_exists():
    hive = FakeHive()
    hive.node.fork_delay = 1.0
    async with running(hive):
        record = await hive.pool.spawn(SPEC)
        await settled()
        await hive.pool.delete(record.worker_id)
        await anyio.sleep(2.0)
        assert hive.node.processes[0].signals == ["TERM"]
        await until_gone(hive, record)


class SlowStore(FakeStore):
    """Somebody else holds its database: a row takes 100 s."""

    async def save(self, row):
        await anyio.sleep(100)
        await super().save(row)


async def test_a_worker_that_has_no_process_yet_is_not_silent():
    hive = FakeHive(store=SlowStore())
    heartbeats = Heartbeats(hive.registry, 30.0, 60.0, hive.pool.went_stale)
    async with running(hive), anyio.create_task_group() as tasks:
        tasks.start_soon(heartbeats.run)
        record = await hive.pool.spawn(SPEC)
        await anyio.sleep(150)
        assert (record.worker.state, len(hive.node.launches)) == (S.STARTING, 1)
        await anyio.sleep(20)
        assert record.worker.ending is ExitReason.STALE
        tasks.cancel_scope.cancel()


async def test_a_worker_that_is_deleted_while_its_row_is_written_is_never_started():
    hive = FakeHive(store=SlowStore())
    async with running(hive):
        record = await hive.pool.spawn(SPEC)
        await settled()
        await hive.pool.delete(record.worker_id)
        await until_gone(hive, record)
        assert hive.node.launches == []


async def test_a_fork_that_fails_leaves_a_failed_worker_that_says_so():
    hive = FakeHive()
    hive.node.fail_next = OSError(12, "Cannot allocate memory")
    async with running(hive):
        record = await hive.pool.spawn(SPEC)
        await settled()
        assert record.worker.state is S.FAILED
        assert "Cannot allocate memory" in record.worker.message


async def test_a_database_that_fails_starts_nothing_and_never_ends_the_hive():
    hive = FakeHive(store=FakeStore())
    hive.store.fail = OSError("disk full")
    async with running(hive):
        record = await hive.pool.spawn(SPEC)
        await settled()
        assert (record.worker.state, hive.node.launches) == (S.FAILED, [])
        await hive.pool.delete(record.worker_id)
        await until_gone(hive, record)
        hive.store.fail = None
        assert (await hive.pool.spawn(SPEC)).worker.state is S.STARTING


async def test_a_database_that_fails_after_the_fork_leaves_the_worker_serving():
    async with running(FakeHive()) as hive:
        hive.node.fork_delay = 1.0
        record = await hive.pool.spawn(SPEC)
        await settled()
        hive.store.fail = OSError("disk full")
        await anyio.sleep(2.0)
        await hive.reception.announce(hive.speaker(record.worker_id), announcement(record.worker_id, incarnation=1))
        assert record.worker.state is S.READY


async def test_a_restart_by_hand_is_the_next_incarnation_with_a_new_token():
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive)
        await hive.pool.restart(record.worker_id)
        await settled()
        first, second = hive.node.launches
        assert (first.incarnation, second.incarnation, record.worker.restart_count) == (1, 2, 1)
        assert first.token != second.token
        with pytest.raises(OlderIncarnation):
            await hive.reception.announce(hive.speaker(record.worker_id, 1), announcement(record.worker_id))
        await hive.reception.announce(hive.speaker(record.worker_id, 2), announcement(record.worker_id, incarnation=2))
        assert record.worker.state is S.READY


async def test_a_callback_that_the_state_does_not_allow_changes_nothing():
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive)
        worker = record.worker
        with pytest.raises(IllegalTransition):
            await hive.reception.announce(hive.speaker(record.worker_id), announcement(record.worker_id, "loading"))
        assert record.worker is worker


async def test_an_illegal_event_from_inside_ends_that_worker_alone():
    async with running(FakeHive()) as hive:
        record, other = await ready_worker(hive), await ready_worker(hive)
        from_nowhere = hive.pool._supervisors[record.worker_id]
        from_nowhere.fire(ev.BackoffEnded())
        await settled()
        assert hive.pool.illegal_events == 1
        assert (record.worker.state, other.worker.state) == (S.FAILED, S.READY)


async def test_ports_that_others_hold_are_passed_over_and_two_workers_never_share_one():
    hive = FakeHive()
    hive.node.taken_ports = {8081, 8083}
    async with running(hive):
        await hive.pool.spawn(SPEC)
        await hive.pool.spawn(SPEC)
        await settled()
        assert [launch.port for launch in hive.node.launches] == [8082, 8084]
        hive.node.taken_ports = set(range(8081, 8090))
        with pytest.raises(NoPortLeft, match=r"8081-8089.*workers\.port_range"):
            await hive.pool.spawn(SPEC)
        assert len(hive.registry) == 2


async def test_what_cannot_be_started_is_refused_and_leaves_nothing():
    hive = FakeHive()
    hive.library.missing = {"synthetic:gone"}
    async with running(hive):
        await hive.pool.spawn(replace(SPEC, alias="chat"))
        with pytest.raises(ModelNotFound):
            await hive.pool.spawn(replace(SPEC, model_ref="synthetic:gone"))
        with pytest.raises(AliasInUse, match="synthetic:x"):
            await hive.pool.spawn(replace(SPEC, model_ref="synthetic:y", alias="chat"))
        with pytest.raises(InvalidField, match="looks like"):
            await hive.pool.spawn(replace(SPEC, alias="w-12345678"))
        with pytest.raises(InvalidField, match="no engine 'vllm'"):
            await hive.pool.spawn(replace(SPEC, engine="vllm"))
        assert len(hive.registry) == 1


async def test_a_second_worker_of_the_same_model_may_share_the_alias():
    async with running(FakeHive()) as hive:
        await hive.pool.spawn(replace(SPEC, alias="chat"))
        await hive.pool.spawn(replace(SPEC, alias="chat"))
        assert len(hive.routes.candidates("chat")) == 2


async def test_an_unknown_worker_is_not_found():
    async with running(FakeHive()) as hive:
        with pytest.raises(WorkerNotFound):
            await hive.pool.delete("w-nobody")


class TestExternal:
    async def test_a_worker_started_by_hand_is_registered_and_only_ever_removed(self):
        async with running(FakeHive()) as hive:
            await hive.reception.announce(ANYBODY, announcement("by-hand", "loading"))
            record = await hive.reception.announce(ANYBODY, announcement("by-hand", "ready"))
            assert (record.worker.state, record.worker.spec.external) == (S.READY, True)
            await hive.pool.delete("by-hand")
            await until_gone(hive, record)
            assert hive.node.launches == []

    async def test_one_whose_process_ends_leaves_routing_at_once(self):
        async with running(FakeHive()) as hive:
            process = hive.node.add_other(1000)
            record = await hive.reception.announce(ANYBODY, announcement("by-hand"))
            process.end(Exit(ExitReason.CRASHED))
            await settled()
            assert record.worker.state is S.FAILED
            hive.pool.went_stale("by-hand")
            await until_gone(hive, record)

    async def test_one_whose_pid_was_another_process_comes_back_when_it_is_heard_of_again(self):
        """In a pid namespace of its own a worker says a pid that is somebody else's here."""
        hive = FakeHive()
        heartbeats = Heartbeats(hive.registry, 30.0, 60.0, hive.pool.went_stale)
        async with running(hive):
            stranger = hive.node.add_other(1000)
            first = await hive.reception.announce(ANYBODY, announcement("by-hand"))
            stranger.end(Exit(ExitReason.CRASHED))
            await settled()
            vital = first.vital
            with pytest.raises(WorkerNotFound, match="announce it again"):
                heartbeats.beat(first, None, True, Telemetry())
            assert first.vital is vital
            del hive.node.others[1000]
            second = await hive.reception.announce(ANYBODY, announcement("by-hand"))
            assert second is hive.registry.get("by-hand")
            assert (second.worker.state, hive.routes.routes["by-hand"].standing) == (S.READY, Standing.READY)
            heartbeats.beat(second, None, True, Telemetry())

    async def test_one_that_has_said_that_it_failed_may_say_so_again_and_stays_failed(self):
        async with running(FakeHive()) as hive:
            record = await hive.reception.announce(ANYBODY, announcement("by-hand"))
            await hive.reception.announce(ANYBODY, announcement("by-hand", "failed", reason="I died"))
            with pytest.raises(IllegalTransition):
                await hive.reception.announce(ANYBODY, announcement("by-hand", "failed", reason="I died"))
            assert record.worker.state is S.FAILED
            assert hive.registry.get("by-hand") is record

    async def test_the_last_word_of_a_dead_one_does_not_touch_its_successor(self):
        async with running(FakeHive()) as hive:
            await hive.reception.announce(ANYBODY, announcement("by-hand"))
            second = await hive.reception.announce(ANYBODY, announcement("by-hand", pid=1001))
            with pytest.raises(OlderIncarnation, match="1001"):
                await hive.reception.announce(ANYBODY, announcement("by-hand", "failed", reason="I died"))
            assert second.worker.state is S.READY

    async def test_one_that_comes_back_while_it_is_being_forgotten_is_registered_after_that(self):
        """Its id leaves the registry at once, and what is kept of it a moment later."""
        hive = FakeHive()
        hive.node.forget_delay = 5.0
        async with running(hive):
            await hive.reception.announce(ANYBODY, announcement("by-hand"))
            await hive.pool.delete("by-hand", force=True)
            assert "by-hand" not in hive.registry
            again = await hive.reception.announce(ANYBODY, announcement("by-hand"))
            await anyio.sleep(60)
            assert hive.registry.get("by-hand") is again
            hive.pool.went_stale("by-hand")
            await until_gone(hive, again)

    async def test_one_may_not_be_the_hive_itself(self):
        async with running(FakeHive()) as hive:
            with pytest.raises(InvalidField, match="the hive's own"):
                await hive.reception.announce(ANYBODY, announcement("by-hand", url="http://127.0.0.1:9200"))

    async def test_one_that_is_started_again_under_its_id_takes_the_place_of_the_dead_one(self):
        async with running(FakeHive()) as hive:
            first = await hive.reception.announce(ANYBODY, announcement("by-hand"))
            second = await hive.reception.announce(ANYBODY, announcement("by-hand", "loading", pid=1001))
            assert second is not first
            assert (second.worker.pid, second.worker.state) == (1001, S.LOADING)

    async def test_only_an_admin_may_register_one(self):
        async with running(FakeHive()) as hive:
            with pytest.raises(OlderIncarnation, match="carries the mark"):
                await hive.reception.announce(hive.speaker("w-unknown"), announcement("w-unknown"))
            with pytest.raises(Forbidden):
                await hive.reception.announce(auth.Principal(auth.Role.CLIENT), announcement("by-hand"))

    @pytest.mark.parametrize(
        "url",
        [
            "https://127.0.0.1:1",
            "http://127.0.0.1",
            "http://127.0.0.1:1/x",
            "http://127.0.0.1:99999",
            "http://[::1",
            "x",
        ],
    )
    async def test_its_url_must_be_plain(self, url):
        async with running(FakeHive()) as hive:
            with pytest.raises(InvalidField, match="http://host:port"):
                await hive.reception.announce(ANYBODY, announcement("by-hand", url=url))

    async def test_its_url_is_checked_at_every_callback(self):
        async with running(FakeHive()) as hive:
            record = await hive.reception.announce(ANYBODY, announcement("by-hand", "loading"))
            for url in ("http://192.0.2.1:80", "http://a..b:80", "nonsense", "http://127.0.0.1:9200"):
                with pytest.raises(InvalidField):
                    await hive.reception.announce(ANYBODY, announcement("by-hand", url=url))
            assert (record.worker.state, record.worker.url) == (S.LOADING, "http://127.0.0.1:8081")

    async def test_its_name_may_not_be_an_alias_and_it_may_not_be_dead(self):
        async with running(FakeHive()) as hive:
            await hive.pool.spawn(replace(SPEC, alias="chat"))
            with pytest.raises(WorkerIdInUse):
                await hive.reception.announce(ANYBODY, announcement("chat"))
            with pytest.raises(InvalidField):
                await hive.reception.announce(ANYBODY, announcement("by-hand", "failed"))

    async def test_no_row_is_ever_written_of_one(self):
        async with running(FakeHive()) as hive:
            record = await hive.reception.announce(ANYBODY, announcement("by-hand"))
            hive.routes.acquire(record.worker_id)
            await hive.pool.delete(record.worker_id)
            await settled()
            assert hive.store.history == []

    async def test_a_hive_may_refuse_them_all(self):
        options = ReceptionOptions(allow_external=False, external_hosts=(), front_port=9200)
        async with running(FakeHive(reception_options=options)) as hive:
            with pytest.raises(Forbidden, match=r"workers\.allow_external"):
                await hive.reception.announce(ANYBODY, announcement("by-hand"))


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "http://192.0.2.1:80", "ftp://127.0.0.1:1", "http://["])
async def test_a_worker_of_the_hive_may_not_lead_requests_elsewhere(url):
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive)
        worker, entries = record.worker, hive.pool.journal.last_number
        with pytest.raises(InvalidField):
            await hive.reception.announce(hive.speaker(record.worker_id), announcement(record.worker_id, url=url))
        assert record.worker is worker
        assert hive.pool.journal.last_number == entries


SAID = {"loading": ev.AnnouncedLoading, "ready": ev.AnnouncedReady, "failed": ev.AnnouncedFailed}


@pytest.mark.parametrize("state", [state for state in S if state is not S.GONE])
@pytest.mark.parametrize("said", SAID)
async def test_every_callback_in_every_state_is_taken_or_refused_with_nothing_changed(state, said):
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive)
        record.worker = before = replace(record.worker, state=state)
        voice, body = hive.speaker(record.worker_id), announcement(record.worker_id, said, incarnation=1, reason="no")
        if (state, SAID[said]) in TRANSITIONS:
            await hive.reception.announce(voice, body)
            assert record.worker.state in TRANSITIONS[state, SAID[said]]
        else:
            with pytest.raises(IllegalTransition):
                await hive.reception.announce(voice, body)
            assert record.worker is before
        record.worker = replace(record.worker, state=S.FAILED)


class TestVoices:
    async def test_another_workers_token_may_not_speak(self):
        async with running(FakeHive()) as hive:
            first, second = await ready_worker(hive), await ready_worker(hive)
            with pytest.raises(Forbidden):
                await hive.reception.announce(hive.speaker(second.worker_id), announcement(first.worker_id, "failed"))

    async def test_the_anonymous_admin_may_not_speak_for_a_worker_of_the_hive(self):
        async with running(FakeHive()) as hive:
            record = await ready_worker(hive)
            with pytest.raises(Forbidden):
                await hive.reception.announce(ANYBODY, announcement(record.worker_id, "failed"))


class TestStop:
    async def test_all_workers_end_at_once_within_the_time(self):
        async with running(FakeHive()) as hive:
            for _ in range(5):
                await ready_worker(hive)
            start = anyio.current_time()
            assert await hive.pool.stop(30.0) == []
            assert anyio.current_time() - start < 1
            assert all(process.signals == ["TERM"] for process in hive.node.processes)
            with pytest.raises(ShuttingDown):
                await hive.pool.spawn(SPEC)

    async def test_requests_get_two_thirds_and_deaf_workers_are_killed_in_time(self):
        hive = FakeHive()
        hive.node.deaf = True
        async with running(hive):
            record = await ready_worker(hive)
            hive.routes.acquire(record.worker_id)
            start = anyio.current_time()
            assert await hive.pool.stop(30.0) == []
            assert anyio.current_time() - start == pytest.approx(20 + 7)
            assert hive.node.processes[0].signals == ["TERM", "KILL"]

    async def test_a_drain_that_has_begun_before_ends_by_the_shutdowns_time(self):
        options = replace(FakeHive().options, drain_timeout=120.0, term_grace=60.0)
        hive = FakeHive(options=options)
        hive.node.deaf = True
        async with running(hive):
            record = await ready_worker(hive)
            hive.routes.acquire(record.worker_id)
            await hive.pool.delete(record.worker_id)
            await settled()
            start = anyio.current_time()
            assert await hive.pool.stop(30.0) == []
            assert anyio.current_time() - start <= 27
            assert hive.node.processes[0].signals == ["TERM", "KILL"]

    async def test_what_would_not_stop_is_named(self, monkeypatch):
        hive = FakeHive()
        hive.node.deaf = True
        async with running(hive):
            record = await ready_worker(hive)
            process = hive.node.processes[0]
            monkeypatch.setattr(process, "kill", lambda: process.signals.append("KILL"))
            assert await hive.pool.stop(30.0) == [record.worker_id]

    async def test_a_second_signal_waits_for_nobody(self):
        async with running(FakeHive()) as hive:
            record = await ready_worker(hive)
            hive.routes.acquire(record.worker_id)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hive.pool.stop, 30.0)
                await settled()
                hive.pool.force_stop()
            assert hive.node.processes[0].signals == ["KILL"]


async def test_a_kill_that_did_not_end_it_is_sent_again(monkeypatch):
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive)
        process = hive.node.processes[0]
        real = process.kill
        monkeypatch.setattr(process, "kill", lambda: process.signals.append("lost"))
        await hive.pool.delete(record.worker_id, force=True)
        await anyio.sleep(35)
        assert process.signals == ["lost"] * 3
        assert "Killed 2 times" in record.worker.message
        monkeypatch.setattr(process, "kill", real)
        await until_gone(hive, record)


async def test_an_engine_that_ends_while_it_loads_is_its_keepers_business():
    """The keeper may have lost its port to somebody else, and starts another engine on the next one."""
    async with running(FakeHive()) as hive:
        first = hive.node.add_other(2000)
        record = await hive.pool.spawn(SPEC)
        await settled()
        voice = hive.speaker(record.worker_id)
        await hive.reception.announce(voice, announcement(record.worker_id, "loading", engine_pid=2000))
        first.end(Exit(ExitReason.CRASHED))
        await settled()
        assert record.worker.state is S.LOADING
        again = announcement(record.worker_id, "loading", engine_pid=2001, url="http://127.0.0.1:8082")
        await hive.reception.announce(voice, again)
        await hive.reception.announce(voice, replace(again, state="ready"))
        assert (record.worker.state, record.worker.engine_pid) == (S.READY, 2001)
        assert hive.routes.candidates("synthetic:x")[0].port == 8082


async def test_a_hive_that_ends_while_it_forks_has_written_down_what_it_forked():
    hive = FakeHive()
    hive.node.fork_delay = 1.0
    async with running(hive):
        await hive.pool.spawn(SPEC)
        await settled()
    (row,) = hive.store.rows.values()
    assert row.identity == hive.node.processes[0].identity


async def test_requests_wait_for_a_worker_that_is_restarted_and_not_for_one_that_is_deleted():
    async with running(FakeHive()) as hive:
        restarted, deleted = await ready_worker(hive), await ready_worker(hive)
        hive.routes.acquire(restarted.worker_id)
        hive.routes.acquire(deleted.worker_id)
        await hive.pool.restart(restarted.worker_id)
        await hive.pool.delete(deleted.worker_id)
        assert hive.routes.routes[restarted.worker_id].standing is Standing.COMING
        assert hive.routes.routes[deleted.worker_id].standing is Standing.OUT
