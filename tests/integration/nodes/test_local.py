"""Real processes of the local node: identity, signals that never hit a stranger, logs, what a worker is told."""

import os
import signal
import subprocess
import sys

import anyio
import anyio.to_thread
import pytest

from rbee.core.exits import ExitReason
from rbee.core.launch import EngineOptions, Launch, ProcessIdentity
from rbee.core.worker import WorkerSpec
from rbee.nodes import logs, processes
from rbee.nodes.local import LocalNode, command, environment
from tests.hives import wait_for

pytestmark = pytest.mark.anyio
SPEC = WorkerSpec("w-1", "synthetic:x", engine="synthetic", engine_args=("--load-seconds", "5"), alias="chat")
LAUNCH = Launch(SPEC, 3, 8081, 9000, "", token="a-secret-token", callback_url="unix:/nowhere/control.sock")
SLEEPER = [sys.executable, "-c", "import signal; signal.pause()"]
DEAF = [
    sys.executable,
    "-c",
    "import signal,sys\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\nsignal.pause()",
]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def sleeper():
    child = subprocess.Popen(SLEEPER, start_new_session=True)
    yield child
    child.kill()
    child.wait()


def test_a_process_is_the_same_only_with_its_start_time_and_boot(sleeper):
    identity = processes.identify(sleeper.pid)
    assert processes.is_same(identity)
    assert not processes.is_same(ProcessIdentity(identity.pid, identity.start_time + 1, identity.boot_id))
    assert not processes.is_same(ProcessIdentity(identity.pid, identity.start_time, "another boot"))


def test_a_zombie_is_no_process():
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert processes.identify(child.pid) is None
    child.wait()


def test_a_signal_is_never_sent_to_another_process_with_the_same_pid(sleeper):
    real = processes.identify(sleeper.pid)
    earlier = ProcessIdentity(real.pid, real.start_time - 1, real.boot_id)
    stranger = processes.WatchedProcess(earlier)
    stranger.terminate()
    stranger.kill()
    # A signal that was sent takes a moment to end a process, so its absence takes one to be seen.
    with pytest.raises(subprocess.TimeoutExpired):
        sleeper.wait(0.5)


async def test_the_end_of_a_process_is_seen_with_its_status(sleeper):
    watched = processes.WatchedProcess(processes.identify(sleeper.pid), sleeper)
    async with anyio.create_task_group() as tasks:
        seen = []

        async def wait():
            seen.append(await watched.wait())

        tasks.start_soon(wait)
        watched.terminate()
    assert seen[0].signal_number == signal.SIGTERM


async def test_a_process_that_is_not_our_child_is_seen_to_end_too(sleeper):
    node_view = processes.WatchedProcess(processes.identify(sleeper.pid))
    sleeper.kill()
    exit_ = await node_view.wait()
    assert (exit_.code, exit_.signal_number) == (None, None)


@pytest.fixture
def deaf():
    child = subprocess.Popen(DEAF, start_new_session=True, stdout=subprocess.PIPE)
    child.stdout.readline()
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


async def test_a_deaf_leftover_is_killed_after_its_grace(deaf):
    identity = processes.identify(deaf.pid)
    assert await processes.end_identified(identity, 0.05)
    assert deaf.wait() == -signal.SIGKILL
    assert not await processes.end_identified(identity, 0.05)


def test_whatever_carries_the_incarnation_is_found_and_killed():
    environ = {**os.environ, processes.INCARNATION_VARIABLE: f"w-sweep-{os.getpid()}:7"}
    marked = subprocess.Popen(SLEEPER, env=environ, start_new_session=True)
    other = subprocess.Popen(SLEEPER, env={**environ, processes.INCARNATION_VARIABLE: f"w-sweep-{os.getpid()}:70"})
    try:
        assert processes.kill_carriers(f"w-sweep-{os.getpid()}:7") == 1
        assert marked.wait() == -signal.SIGKILL
        assert other.poll() is None
    finally:
        for child in (marked, other):
            child.kill()
            child.wait()


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
    node._drop_old(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["10.exit.json", "10.log", "11.exit.json", "11.log"]


def test_no_secret_is_on_a_command_line_and_none_but_its_own_in_the_environment(tmp_path):
    environ = {"PATH": "/bin", "RBEE_API_TOKEN": "admin", "AWS_SECRET_ACCESS_KEY": "x", "CUDA_VISIBLE_DEVICES": "0"}
    argv = command(LAUNCH, tmp_path / "exit.json")
    assert argv[:3] == [sys.executable, "-m", "rbee.worker"]
    assert argv[-3:] == ["--", "--load-seconds", "5"]
    assert not any("a-secret-token" in part for part in argv)
    built = environment(LAUNCH, environ)
    assert built["RBEE_WORKER_TOKEN"] == "a-secret-token"
    assert built["RBEE_WORKER_INCARNATION"] == "w-1:3"
    assert built["CUDA_VISIBLE_DEVICES"] == "0"
    assert {"RBEE_API_TOKEN", "AWS_SECRET_ACCESS_KEY"}.isdisjoint(built)


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

    async def test_a_followed_log_gives_new_lines_and_survives_a_cut(self, tmp_path):
        log = tmp_path / "1.log"
        log.write_text("one\ntwo\n")
        seen = []
        with anyio.fail_after(30):
            async for line in logs.follow(log, 1):
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
                    break
        assert seen == ["two", "three", "four", "five"]
