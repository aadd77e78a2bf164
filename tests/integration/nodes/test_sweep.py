"""Nothing of a worker stays behind: wherever a process hides, and whoever was killed first."""

import os
import signal
import threading
from dataclasses import replace
from types import SimpleNamespace

import anyio
import anyio.to_thread
import pytest

from rbee.core.launch import StoredWorker
from rbee.nodes import marks, processes, sweep
from tests.integration.nodes.exhausted import no_descriptors, open_descriptors
from tests.integration.nodes.family import Member, family

pytestmark = pytest.mark.anyio
SERVING = Member("engine", children=[Member("helper", listens=True)])


async def test_the_group_goes_with_the_keeper_and_its_port_is_free(node, row, worker_id):
    with family(f"{worker_id}:7", SERVING) as worker:
        process = await node.adopt(row)
        port = worker["helper"].port
        assert not node.port_is_free("127.0.0.1", port)
        process.kill()
        await process.wait()
        await node.sweep(worker_id, 7)
        assert not any(worker.alive(name) for name in worker.members)
        assert node.port_is_free("127.0.0.1", port)


async def test_what_left_the_group_is_found_by_its_mark_after_the_keeper_was_killed(node, worker_id):
    # So much memory takes longer to come back than a look at all processes.
    helper = Member("helper", setsid=True, listens=True, hold_bytes=512 * 2**20)
    hidden = Member("engine", setsid=True, children=[helper])
    with family(f"{worker_id}:7", hidden) as worker:
        worker.kill_keeper()
        assert worker.alive("engine")
        assert worker.alive("helper")
        assert await node.sweep(worker_id, 7) == 2
        # It returns when they are gone, so nothing has to be waited for.
        assert not worker.alive("engine")
        assert not worker.alive("helper")
        assert node.port_is_free("127.0.0.1", worker["helper"].port)
        assert await node.sweep(worker_id, 7) == 0


async def test_another_incarnation_is_left_alone(node, worker_id):
    with family(f"{worker_id}:70") as other, family(f"{worker_id}:7") as worker:
        assert await node.sweep(worker_id, 7) == 1
        assert not worker.alive("keeper")
        assert other.alive("keeper")


async def test_many_sweeps_at_once_kill_each_their_own(node, worker_id, start_sleeper):
    found = {}

    async def end(number):
        found[number] = await node.sweep(worker_id, number)

    children = [start_sleeper({marks.INCARNATION_VARIABLE: f"{worker_id}:{number}"}) for number in range(20)]
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(end, number)
    assert found == dict.fromkeys(range(20), 1)
    assert [child.wait() for child in children] == [-signal.SIGKILL] * 20


def test_a_process_that_has_just_become_another_program_shows_its_mark(worker_id, start_sleeper):
    # In the moment in which a program replaces another its environment reads empty: once in a few tries without care.
    for _ in range(100):
        assert marks.read(start_sleeper({marks.INCARNATION_VARIABLE: f"{worker_id}:7"}).pid) is not None


async def test_what_was_killed_before_is_waited_for_until_its_memory_is_back(node, row, worker_id):
    with family(f"{worker_id}:7", Member("engine", hold_bytes=512 * 2**20)) as worker:
        process = await node.adopt(row)
        process.kill()
        await process.wait()
        await node.sweep(worker_id, 7)
        assert not worker.alive("engine")


async def test_what_a_gone_keeper_left_is_an_orphan_whoever_started_it(node, worker_id):
    hidden = Member("engine", setsid=True, children=[Member("helper", setsid=True)])
    with (
        family(f"{worker_id}:7", hidden, names_itself=True) as left,
        family(f"{worker_id}:8", hidden, names_itself=True) as living,
    ):
        left.kill_keeper()
        # Not counted: another hive on this machine may have found them first, or left some of its own.
        await node.sweep_orphans()
        assert not left.alive("engine")
        assert not left.alive("helper")
        assert all(living.alive(name) for name in living.members)


@pytest.mark.parametrize("mark", ["", "7", "x:y", "1:", ":1", f"{os.getpid()}:0", "99999999:0"])
async def test_a_mark_that_names_no_keeper_makes_no_orphan(node, mark, start_sleeper):
    child = start_sleeper({marks.KEEPER_VARIABLE: mark})
    await node.sweep_orphans()
    assert processes.start_time(child.pid) is not None


async def test_a_process_that_has_another_mark_once_it_is_held_is_spared(worker_id):
    with family(f"{worker_id}:7") as stranger:
        pid = stranger["keeper"].pid
        # As if the pid had been another's when all processes were looked at.
        target = sweep.Target("w:6", lambda found: found.incarnation == f"{worker_id}:6")
        assert sweep.strike(target, [marks.Marked(pid, f"{worker_id}:6")]).handles == []
        assert stranger.alive("keeper")


@pytest.fixture
def deathless(monkeypatch):
    """A sweep's signals reach nobody, and it soon loses patience."""
    monkeypatch.setattr(sweep, "signal", SimpleNamespace(SIGKILL=0))
    monkeypatch.setattr(sweep, "GONE_TIMEOUT", 0.05)
    monkeypatch.setattr(sweep, "PATIENCE", 0.3)
    return monkeypatch.undo


async def test_a_sweep_never_says_that_nothing_is_left_while_anything_lives(node, row, worker_id, deathless):
    with family(f"{worker_id}:7", Member("engine", setsid=True)) as worker:
        await node.adopt(row)
        pids = sorted(worker[name].pid for name in worker.members)
        before = open_descriptors()
        with pytest.raises(OSError, match=f"^2 processes of {worker_id}:7 do not end: pids {pids[0]}, {pids[1]}$"):
            await node.sweep(worker_id, 7)
        assert open_descriptors() == before
        deathless()
        assert await node.sweep(worker_id, 7) == 2


@pytest.mark.parametrize("spare", [0, 1])
async def test_a_sweep_without_descriptors_fails_and_leaves_none_open(node, worker_id, monkeypatch, spare):
    monkeypatch.setattr(sweep, "PATIENCE", 0.3)
    with family(f"{worker_id}:7", Member("engine", setsid=True)) as worker:
        before = open_descriptors()
        with no_descriptors(spare), pytest.raises(OSError, match=f"{worker_id}:7 cannot .* Too many open files"):
            await node.sweep(worker_id, 7)
        assert open_descriptors() == before
        assert worker.alive("keeper")


async def test_a_sweep_waits_for_descriptors(node, worker_id):
    tried = threading.Event()

    def scan():
        try:
            return marks.scan()
        except OSError:
            tried.set()
            raise

    node._sweeper.scan = marks.SharedScan(scan)
    with family(f"{worker_id}:7", Member("engine", setsid=True)) as worker:
        async with anyio.create_task_group() as tasks:
            with no_descriptors():
                tasks.start_soon(node.sweep, worker_id, 7)
                assert await anyio.to_thread.run_sync(tried.wait, 60)
        assert not worker.alive("keeper")
        assert not worker.alive("engine")


async def test_many_processes_are_ended_with_a_few_descriptors(node, worker_id, start_sleeper):
    children = [start_sleeper({marks.INCARNATION_VARIABLE: f"{worker_id}:7"}) for _ in range(20)]
    with no_descriptors(spare=4):
        assert await node.sweep(worker_id, 7) == 20
    assert [child.wait() for child in children] == [-signal.SIGKILL] * 20


async def test_more_processes_than_are_held_at_once_are_all_ended(node, worker_id, start_sleeper, monkeypatch):
    monkeypatch.setattr(sweep, "_HELD", 3)
    children = [start_sleeper({marks.INCARNATION_VARIABLE: f"{worker_id}:7"}) for _ in range(20)]
    assert await node.sweep(worker_id, 7) == 20
    assert [child.wait() for child in children] == [-signal.SIGKILL] * 20


@pytest.mark.usefixtures("deathless")
async def test_orphans_that_do_not_end_keep_no_hive_from_starting(node, worker_id, monkeypatch):
    # Named by their mark: real ones might be found by another hive on this machine.
    monkeypatch.setattr(sweep, "_is_orphan", lambda found: found.incarnation == f"{worker_id}:7")
    with family(f"{worker_id}:7", Member("engine", setsid=True)) as worker:
        assert await node.sweep_orphans() == 2
        assert worker.alive("engine")


async def test_a_process_that_is_slow_to_show_its_mark_does_not_hold_up_the_loop(node, worker_id, monkeypatch):
    loop_thread, readers = threading.get_ident(), set()
    really = marks.read

    def read(pid):
        readers.add(threading.get_ident())
        return really(pid)

    monkeypatch.setattr(marks, "read", read)
    with family(f"{worker_id}:7", names_itself=True):
        assert await node.find_keeper(worker_id, 7) is not None
        assert await node.sweep(worker_id, 7) == 1
    assert readers
    assert loop_thread not in readers


async def test_a_keeper_without_a_stored_pid_is_found_by_its_mark(node, row, worker_id):
    engine = Member("engine", setsid=True)
    with family(f"{worker_id}:7", engine, Member("helper"), names_itself=True) as worker:
        process = await node.adopt(row)
        assert process.identity == processes.identify(worker["keeper"].pid)
        worker.kill_keeper()
        await process.wait()
        # The engine leads a session, too, but stands below a keeper.
        assert await node.adopt(row) is None


async def test_only_the_very_same_process_is_adopted(node, row, worker_id):
    with family(f"{worker_id}:7") as worker:
        real = processes.identify(worker["keeper"].pid)
        for changes in ({"start_time": real.start_time - 1}, {"boot_id": "another boot"}):
            assert await node.adopt(replace(row, identity=replace(real, **changes))) is None
        adopted = await node.adopt(replace(row, identity=real))
        assert adopted.identity == real
        adopted.terminate()
        with anyio.fail_after(60):
            exit_ = await adopted.wait()
        assert (exit_.code, exit_.signal_number) == (None, None)
        # It is let go of: what has that pid from now on is somebody else.
        adopted.kill()
        assert await node.adopt(StoredWorker(row.spec, 7, real)) is None
