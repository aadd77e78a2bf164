import json
import os
import pty
import signal
import subprocess
import sys

import pytest

PIECES = [json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}) for text in ("Hel", "lo")]


def test_ready_worker_is_asked_at_once(rbee, hive, worker):
    hive.workers = [worker()]
    result = rbee("run", "example", "Hi there", "--system", "Be kind.", "--max-tokens", "7", "--temperature", "0")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello\n", "")
    assert hive.bodies("/v1/chat/completions") == [
        {
            "model": worker()["model_ref"],
            "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi there"}],
            "stream": True,
            "max_tokens": 7,
            "temperature": 0.0,
        }
    ]
    assert hive.bodies("/v1/workers/spawn") == []


def test_model_without_a_worker_is_loaded_first(rbee, hive):
    result = rbee("run", "example", "Hi")
    assert result.stdout == "Hello\n"
    assert result.stderr == "w-new loading\nw-new idle\n"
    assert hive.bodies("/v1/workers/spawn") == [{"model_ref": "example"}]


def test_worker_that_is_loading_is_waited_for(rbee, hive, worker):
    hive.workers = [worker(state="loading", _states=iter(["loading", "idle"]))]
    assert rbee("run", "example", "Hi").stdout == "Hello\n"
    assert hive.bodies("/v1/workers/spawn") == []


def test_failed_worker_is_not_waited_for(rbee, hive, worker):
    hive.workers = [worker(state="failed")]
    assert rbee("run", "example", "Hi").exit_code == 0
    assert hive.bodies("/v1/workers/spawn") == [{"model_ref": "example"}]


def test_load_that_fails_ends_with_the_reason(rbee, hive):
    hive.states_of_new, hive.message_of_new = ["starting", "loading", "failed"], "not a GGUF file"
    result = rbee("run", "example", "Hi")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.endswith("Error: w-new failed: not a GGUF file\n")


def test_prompt_is_read_from_a_pipe(rbee, hive, worker):
    hive.workers = [worker()]
    assert rbee("run", "example", input="from a pipe\n").stdout == "Hello\n"
    assert hive.bodies("/v1/chat/completions")[0]["messages"] == [{"role": "user", "content": "from a pipe"}]


def test_empty_pipe_is_wrong_usage(rbee):
    assert rbee("run", "example", input=" \n").exit_code == 2


def test_json_is_the_answer_of_the_api(rbee, hive, worker):
    hive.workers = [worker()]
    result = rbee("run", "example", "Hi", "--json")
    assert json.loads(result.stdout)["choices"][0]["message"]["content"] == "Hello"


def test_error_in_the_stream_ends_the_answer_with_its_message(rbee, hive, worker, sse):
    hive.workers = [worker()]
    hive.answer = [sse(PIECES[0], json.dumps({"error": {"message": "The worker was lost."}}))]
    result = rbee("run", "example", "Hi")
    assert (result.exit_code, result.stdout) == (1, "Hel")
    assert "The worker was lost." in result.stderr


def test_answer_without_its_end_is_an_error(rbee, hive, worker, sse):
    hive.workers = [worker()]
    hive.answer = [sse(PIECES[0])]
    result = rbee("run", "example", "Hi")
    assert result.exit_code == 1
    assert "cut off" in result.stderr


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_answer_does_not_depend_on_how_the_stream_is_cut(rbee, hive, worker, sse, size):
    hive.workers = [worker()]
    whole = (
        b": waiting\n\n"
        + sse(PIECES[0]).replace(b"\n", b"\r\n")
        + sse(json.dumps({"choices": []}), PIECES[1], "[DONE]")
    )
    hive.answer = [whole[start : start + size] for start in range(0, len(whole), size)]
    assert rbee("run", "example", "Hi").stdout == "Hello\n"


@pytest.fixture
def process(hive):
    """`rbee` as its own process, as a shell would start it."""
    started = []

    def start(*args, terminal=None, **options):
        code = "from rbee.cli.main import main; main()"
        if terminal is not None:
            # The terminal must be its own, or nobody would get the signal of Ctrl+C.
            code = f"import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); {code}"
            options = {"stdin": terminal, "stdout": terminal, "stderr": terminal, "start_new_session": True}
        command = [sys.executable, "-c", code, *args]
        environ = {**os.environ, "RBEE_URL": hive.url, "RBEE_API_TOKEN": "", "TERM": "dumb"}
        started.append(subprocess.Popen(command, env=environ, **options))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.wait()
        for stream in (one.stdin, one.stdout, one.stderr):
            if stream:
                stream.close()


def test_ctrl_c_ends_a_single_answer_without_a_trace(process, hive, worker, sse):
    hive.workers, hive.answer = [worker()], [sse(PIECES[0])]
    hive.hold.clear()
    rbee = process("run", "example", "Hi", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert rbee.stdout.read(3) == b"Hel"
    rbee.send_signal(signal.SIGINT)
    _, errors = rbee.communicate(timeout=10)
    assert rbee.returncode == 130
    assert errors.strip() == b""


def test_reader_that_leaves_ends_it_without_a_trace(process, hive, worker, sse):
    hive.workers = [worker()]
    hive.answer = (sse(PIECES[0]) for _ in range(20000))
    rbee = process("run", "example", "Hi", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    rbee.stdout.read(3)
    rbee.stdout.close()
    assert rbee.wait(10) == 1
    assert rbee.stderr.read() == b""


class Terminal:
    """Our side of a terminal: reads until something is there, types, presses Ctrl+C."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.seen = b""

    def until(self, text: bytes) -> None:
        while text not in self.seen:
            self.seen += os.read(self.fd, 4096)
        self.seen = self.seen.partition(text)[2]

    def type(self, text: bytes) -> None:
        os.write(self.fd, text)


def test_conversation_is_kept_ctrl_c_stops_an_answer_and_ctrl_d_ends(process, hive, worker, sse):
    hive.workers, hive.answer = [worker()], [sse(PIECES[0])]
    hive.hold.clear()
    ours, theirs = pty.openpty()
    try:
        rbee = process("run", "example", terminal=theirs)
        terminal = Terminal(ours)
        terminal.until(b">>> ")
        terminal.type(b"first\n")
        terminal.until(b"Hel")
        terminal.type(b"\x03")
        terminal.until(b">>> ")
        hive.hold.set()
        hive.answer = [sse(*PIECES, "[DONE]")]
        terminal.type(b"second\n")
        terminal.until(b"Hello")
        terminal.until(b">>> ")
        terminal.type(b"\x04")
        assert rbee.wait(10) == 0
    finally:
        os.close(ours)
        os.close(theirs)
    assert [message["content"] for message in hive.bodies("/v1/chat/completions")[1]["messages"]] == [
        "first",
        "Hel",
        "second",
    ]
