"""Real processes of the local node: identity, signals that never hit a stranger, logs, what a worker is told."""

import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import anyio
import anyio.to_thread
import pytest

from rbee.core.claims import Placement
from rbee.core.exits import ExitReason
from rbee.core.launch import EngineOptions, Launch
from rbee.core.worker import WorkerSpec
from rbee.nodes import logs, marks, processes
from rbee.nodes.local import LocalNode, command, environment
from tests.hives import wait_for
from tests.integration.nodes.exhausted import no_descriptors, open_descriptors
from tests.integration.nodes.family import family

pytestmark = pytest.mark.anyio
SPEC = WorkerSpec("w-1", "synthetic:x", engine="synthetic", engine_args=("--load-seconds", "5"), alias="chat")
LAUNCH = Launch(SPEC, 3, 8081, 9000, "", token="a-secret-token", callback_url="unix:/nowhere/control.sock")
SLEEPER = [sys.executable, "-c", "import signal; signal.pause()"]


@pytest.fixture
def sleeper():
    child = subprocess.Popen(SLEEPER, start_new_session=True)
    yield child
    child.kill()
    child.wait()


def test_a_process_is_known_by_more_than_its_pid(sleeper):
    identity = processes.identify(sleeper.pid)
    assert identity == processes.identify(sleeper.pid)
    assert identity.start_time > 0
    assert identity.boot_id


def test_a_zombie_is_no_process():
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert processes.identify(child.pid) is None
    assert processes.watch(child.pid) is None
    child.wait()


def test_an_earlier_process_with_the_same_pid_is_not_held(sleeper):
    real = processes.identify(sleeper.pid)
    for changes in ({"start_time": real.start_time - 1}, {"boot_id": "another boot"}):
        assert processes.hold(replace(real, **changes)) is None


async def test_the_end_of_a_process_is_seen_with_its_status(sleeper):
    identity = processes.identify(sleeper.pid)
    watched = processes.WatchedProcess(identity, processes.Handle(sleeper.pid), sleeper)
    watched.terminate()
    assert (await watched.wait()).signal_number == signal.SIGTERM
    # It is let go of: what has that pid from now on is somebody else.
    watched.terminate()
    watched.kill()


async def test_a_process_that_is_not_our_child_is_seen_to_end_too(sleeper):
    watched = processes.watch(sleeper.pid)
    sleeper.kill()
    exit_ = await watched.wait()
    assert (exit_.code, exit_.signal_number) == (None, None)


async def test_a_process_is_let_go_of_without_waiting(sleeper):
    before = open_descriptors()
    watched = processes.watch(sleeper.pid)
    watched.close()
    watched.close()
    assert open_descriptors() == before
    watched.kill()
    assert processes.identify(sleeper.pid) == watched.identity
    with pytest.raises(anyio.ClosedResourceError):
        await watched.wait()


async def test_one_that_is_waited_for_is_let_go_of_by_who_waits(sleeper):
    before = open_descriptors()
    watched = processes.watch(sleeper.pid)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watched.wait)
        await anyio.wait_all_tasks_blocked()
        watched.close()
        sleeper.kill()
    assert open_descriptors() == before


async def test_a_worker_that_is_taken_over_twice_is_held_once(node, row, worker_id):
    with family(f"{worker_id}:7"):
        first = await node.adopt(row)
        before = open_descriptors()
        second = await node.adopt(row)
        assert len(open_descriptors()) == len(before)
        first.kill()
        with pytest.raises(anyio.ClosedResourceError):
            await first.wait()
        second.kill()
        await second.wait()


async def test_a_process_can_be_killed_when_no_descriptor_is_left(sleeper):
    watched = processes.WatchedProcess(processes.identify(sleeper.pid), processes.Handle(sleeper.pid), sleeper)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        with pytest.raises(OSError, match="Too many open files"):
            os.open("/dev/null", os.O_RDONLY)
        watched.kill()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (await watched.wait()).signal_number == signal.SIGKILL


async def test_a_worker_that_cannot_reach_its_hive_is_a_process_that_can_be_ended(tmp_path):
    node = LocalNode(tmp_path, dict(os.environ), 10**6, keep=5)
    process = await node.spawn(LAUNCH)
    try:
        assert os.getsid(process.identity.pid) == os.getpgid(process.identity.pid) == process.identity.pid
    finally:
        process.kill()
    exit_ = await process.wait()
    assert exit_.signal_number == signal.SIGKILL
    assert await node.sweep("w-1", 3) == 0
    assert (tmp_path / "w-1" / "3.log").exists()
    await node.forget("w-1")
    assert not (tmp_path / "w-1").exists()


async def test_how_a_worker_ended_is_read_from_what_it_left(tmp_path):
    node = LocalNode(tmp_path, dict(os.environ), 10**6, keep=5)
    process = await node.spawn(LAUNCH)
    # It has no hive to talk to; told to end, it ends and leaves word.
    log = tmp_path / "w-1" / "3.log"
    await anyio.to_thread.run_sync(wait_for, log.read_bytes, "it has said something")
    process.terminate()
    exit_ = await process.wait()
    assert (exit_.reason, exit_.code) == (ExitReason.STOPPED, 0)
    await node.sweep("w-1", 3)


def test_only_the_last_logs_of_a_worker_are_kept(tmp_path):
    node = LocalNode(tmp_path, {}, 10**6, keep=3)
    folder = tmp_path / "w-1"
    folder.mkdir()
    for number in (1, 2, 3, 9, 10, 11):
        (folder / f"{number}.log").touch()
        (folder / f"{number}.exit.json").touch()
    (folder / "3.exit.json.77.tmp").touch()
    node._drop_old(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["10.exit.json", "10.log", "11.exit.json", "11.log"]


class TestStrangers:
    @pytest.fixture
    def folder_of(self, tmp_path):
        def make(worker_id):
            folder = tmp_path / "workers" / worker_id
            folder.mkdir(parents=True)
            (folder / "1.exit.json.77.tmp").touch()
            return folder

        return make

    async def test_what_nobody_knows_and_nothing_lives_of_is_removed(self, node, folder_of, worker_id, start_sleeper):
        lost, known, living = folder_of("w-lost"), folder_of("w-known"), folder_of(worker_id)
        start_sleeper({marks.INCARNATION_VARIABLE: f"{worker_id}:7"})
        assert await node.forget_strangers({"w-known", "w-elsewhere"}) == 1
        assert not lost.exists()
        assert known.exists()
        assert living.exists()

    async def test_nothing_is_removed_of_one_that_is_being_started_or_was_adopted(self, node, folder_of, row):
        begun, adopted = folder_of("w-1"), folder_of(row.spec.worker_id)
        await node.adopt(row)
        process = await node.spawn(LAUNCH)
        process.kill()
        await process.wait()
        await node.sweep("w-1", 3)
        assert await node.forget_strangers(()) == 0
        assert begun.exists()
        assert adopted.exists()
        await node.forget("w-1")
        folder_of("w-1")
        assert await node.forget_strangers(()) == 1

    async def test_nothing_is_removed_while_nobody_can_say_what_lives(self, node, folder_of):
        lost = folder_of("w-lost")
        with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
            await node.forget_strangers(())
        node._sweeper.scan = marks.SharedScan(scan_without_descriptors)
        with pytest.raises(OSError, match="Too many open files"):
            await node.forget_strangers(())
        assert lost.exists()

    async def test_without_any_folder_there_is_nothing_to_do(self, node):
        assert await node.forget_strangers(()) == 0


def scan_without_descriptors():
    with no_descriptors():
        return marks.scan()


def test_no_secret_is_on_a_command_line_and_none_but_its_own_in_the_environment(tmp_path):
    environ = {
        "PATH": "/bin",
        "RBEE_API_TOKEN": "admin",
        "AWS_SECRET_ACCESS_KEY": "x",
        "NVIDIA_API_KEY": "x",
        "GGML_CUDA_GRAPH_OPT": "0",
        "HF_HOME": "/hub",
    }
    argv = command(LAUNCH, tmp_path / "exit.json")
    assert argv[:3] == [sys.executable, "-m", "rbee.worker"]
    assert argv[-3:] == ["--", "--load-seconds", "5"]
    assert not any("a-secret-token" in part for part in argv)
    built = environment(LAUNCH, environ)
    assert built["RBEE_WORKER_TOKEN"] == "a-secret-token"
    assert built["RBEE_WORKER_INCARNATION"] == "w-1:3"
    assert (built["GGML_CUDA_GRAPH_OPT"], built["HF_HOME"]) == ("0", "/hub")
    assert {"RBEE_API_TOKEN", "AWS_SECRET_ACCESS_KEY", "NVIDIA_API_KEY"}.isdisjoint(built)


def test_a_worker_is_told_where_it_was_placed(tmp_path):
    placement = Placement("cuda", (2, 0), (0.25, 0.75))
    launch = replace(LAUNCH, placement=placement, device_uuids=("GPU-c", "GPU-a"))
    argv = command(launch, tmp_path / "exit.json")
    told = dict(zip(argv[3::2], argv[4::2], strict=False))
    assert (told["--backend"], told["--device"], told["--devices"]) == ("cuda", "2", "2,0")
    assert told["--tensor-split"] == "0.25,0.75"
    assert environment(launch, {"CUDA_VISIBLE_DEVICES": "0,1,2"})["CUDA_VISIBLE_DEVICES"] == "GPU-c,GPU-a"


def test_an_engine_is_told_what_was_asked_for_and_what_the_hive_added(tmp_path):
    argv = command(replace(LAUNCH, added_engine_args=("--no-mmap",)), tmp_path / "exit.json")
    assert argv[-4:] == ["--", "--load-seconds", "5", "--no-mmap"]
    unasked = replace(LAUNCH, spec=replace(SPEC, engine_args=()), added_engine_args=("--no-mmap",))
    assert command(unasked, tmp_path / "exit.json")[-2:] == ["--", "--no-mmap"]


def test_a_worker_of_the_processor_sees_no_gpu(tmp_path):
    argv = command(LAUNCH, tmp_path / "exit.json")
    assert argv[argv.index("--backend") + 1] == "cpu"
    assert "--devices" not in argv
    assert environment(LAUNCH, {})["CUDA_VISIBLE_DEVICES"] == ""


def test_an_engine_with_a_python_alone_is_llama_cpp_run_by_it(tmp_path):
    options = EngineOptions(python="/opt/cuda/bin/python")
    argv = command(replace(LAUNCH, spec=replace(SPEC, engine="cuda"), engine=options), tmp_path / "exit.json")
    assert argv[argv.index("--engine") + 1] == "llama-cpp"
    assert argv[argv.index("--engine-python") + 1] == "/opt/cuda/bin/python"


def test_the_template_of_a_command_engine_travels_in_the_environment(tmp_path):
    engine = EngineOptions(("vllm", "serve", "{model}"), "/health")
    launch = Launch(SPEC, 1, 8081, 9000, "", token="t", engine=engine)
    assert environment(launch, {})["RBEE_ENGINE_COMMAND"] == '["vllm", "serve", "{model}"]'
    assert "vllm" not in " ".join(command(launch, tmp_path / "exit.json"))


class TestLogs:
    def test_the_tail_of_a_log_is_its_last_lines(self, tmp_path):
        log = tmp_path / "1.log"
        assert logs.tail(log, 5) == []
        log.write_text("".join(f"line {number}\n" for number in range(50_000)))
        assert logs.tail(log, 2) == ["line 49998", "line 49999"]
        assert logs.tail(log, 0) == []
        assert len(logs.tail(log, 60_000)) == 50_000

    def test_bytes_that_are_no_text_do_not_break_it(self, tmp_path):
        log = tmp_path / "1.log"
        log.write_bytes(b"good\n\xff\xfe bad\n")
        assert logs.tail(log, 5) == ["good", "\ufffd\ufffd bad"]

    def test_a_long_log_is_cut_to_its_newest_half_and_its_writer_goes_on(self, tmp_path):
        log = tmp_path / "1.log"
        with log.open("ab", buffering=0) as writer:
            for number in range(1000):
                writer.write(f"line {number:04}\n".encode())
            assert logs.cut(log, 5000)
            writer.write(b"the end\n")
        lines = log.read_text().splitlines()
        assert lines[-2:] == ["line 0999", "the end"]
        assert all(line.startswith("line ") for line in lines[:-1])
        assert log.stat().st_size <= 2600
        assert not logs.cut(log, 5000)
        assert not logs.cut(tmp_path / "none.log", 5000)

    async def test_a_followed_log_goes_on_over_cuts_and_restarts_and_ends_with_its_worker(self, tmp_path):
        log = tmp_path / "1.log"
        log.write_text("one\ntwo\n")
        seen = []
        with anyio.fail_after(30):
            async for line in logs.follow(tmp_path, 1):
                seen.append(line)
                if line == "two":
                    with log.open("a") as writer:
                        writer.write("three\nfo")
                elif line == "three":
                    with log.open("a") as writer:
                        writer.write("ur\n")
                elif line == "four":
                    log.write_text("five\n")
                elif line == "five":
                    (tmp_path / "2.log").write_text("six\n")
                elif line == "six":
                    shutil.rmtree(tmp_path)
        assert seen == ["two", "three", "four", "five", "six"]

    def test_one_that_follows_outlives_a_moment_without_descriptors(self, tmp_path):
        log = tmp_path / "1.log"
        log.write_text("one\n")
        follower = logs._Follower(tmp_path, 5)
        with no_descriptors():
            assert follower.look() == []
        assert follower.look() == ["one"]
        log.write_text("one\ntwo\n")
        with no_descriptors():
            assert follower.look() == []
        assert follower.look() == ["two"]
        shutil.rmtree(tmp_path)
        assert follower.look() is None

    async def test_of_a_worker_without_a_folder_there_is_nothing_to_follow_or_read(self, node):
        assert [line async for line in node.follow("w-1", 5)] == []
        assert await node.tail("w-1", 5) == []

    async def test_a_log_that_cannot_be_read_is_an_error_and_not_empty(self, node, tmp_path):
        (tmp_path / "workers" / "w-1" / "1.log").mkdir(parents=True)
        with pytest.raises(IsADirectoryError):
            await node.tail("w-1", 5)
        with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
            await node.tail("w-1", 5)

    def test_what_can_be_read_of_a_log_on_a_broken_disk_is_shown(self):
        class BrokenAtTheFront(io.BytesIO):
            def read(self, size=-1):
                if self.tell() == 0:
                    raise OSError("bad sector")
                return super().read(size)

        class Path:
            def __init__(self, content):
                self._content = content

            def open(self, _mode):
                return BrokenAtTheFront(self._content)

        assert logs.tail(Path(b"x" * 100 + b"\nlast\n" * 20_000), 60_000)[-1] == "last"
        with pytest.raises(OSError, match="bad sector"):
            logs.tail(Path(b"short\n"), 5)

    async def test_cutting_goes_on_whatever_cannot_be_listed(self, tmp_path):
        class Node(LocalNode):
            def _cut_all(self):
                super()._cut_all()
                rounds.release()

        rounds = threading.Semaphore(0)
        node = Node(tmp_path / "workers", {}, 100, keep=5)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(node.cut_logs, 0)
            assert await anyio.to_thread.run_sync(rounds.acquire, True, 60)
            long = tmp_path / "workers" / "w-1" / "1.log"
            long.parent.mkdir(parents=True)
            with no_descriptors():
                for _ in range(2):
                    assert await anyio.to_thread.run_sync(rounds.acquire, True, 60)
            long.write_text("line\n" * 1000)
            await anyio.to_thread.run_sync(wait_for, lambda: long.stat().st_size < 100, "it is cut")
            tasks.cancel_scope.cancel()

    def test_a_worker_that_is_forgotten_while_logs_are_cut_disturbs_nothing(self, tmp_path, monkeypatch):
        node = LocalNode(tmp_path, {}, 100, keep=5)
        for name in ("w-1", "w-2"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "1.log").write_text("line\n" * 1000)
        really = logs.folders

        def listed_and_forgotten(directory):
            found = really(directory)
            shutil.rmtree(tmp_path / "w-1")
            return found

        monkeypatch.setattr(logs, "folders", listed_and_forgotten)
        node._cut_all()
        assert (tmp_path / "w-2" / "1.log").stat().st_size < 100
