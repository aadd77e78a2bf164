import json
import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from rbee.worker import exit_file, ports
from rbee.worker.callback import error_of, seconds_in, text_in
from rbee.worker.engines.synthetic_generation import prompt_text
from rbee.worker.engines.synthetic_http import take_request
from rbee.worker.events import EngineIdle, Mailbox, Signalled
from rbee.worker.exit_file import Ending
from rbee.worker.log import LINE, timestamp
from rbee.worker.processes import start_ticks
from rbee.worker.wire import Answer


def test_timestamps_are_rfc_3339() -> None:
    assert timestamp(0.0) == "1970-01-01T00:00:00.000Z"
    assert timestamp(1_700_000_000.999_9) == "2023-11-14T22:13:20.999Z"
    assert LINE.match(f"{timestamp()} info Heartbeat sent successfully".encode())


@pytest.mark.parametrize(("status", "expected"), [(None, {}), (3, {"engine_exit_code": 3}), (-9, {"engine_signal": 9})])
def test_the_exit_file_says_how_the_engine_ended(tmp_path: Path, status: int | None, expected: dict[str, int]) -> None:
    path = tmp_path / "exit.json"
    exit_file.write(str(path), 5, Ending("crashed", "why", 1, status))
    record = json.loads(path.read_text())
    assert record.pop("at").endswith("Z")
    assert record == {"incarnation": 5, "reason": "crashed", "message": "why", "exit_code": 1, **expected}
    assert os.listdir(tmp_path) == ["exit.json"]


def test_an_exit_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "exit.json").mkdir()
    with pytest.raises(OSError, match=r"."):
        exit_file.write(str(tmp_path / "exit.json"), None, Ending("stopped", "", 0))
    assert os.listdir(tmp_path) == ["exit.json"]


def test_the_first_free_port_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert ports.first_free("127.0.0.1", port, port) is None
        found = ports.first_free("127.0.0.1", port, 65535)
        assert found is not None
        assert found > port
        with socket.create_server(("127.0.0.1", found)):
            pass


def test_the_message_of_an_error_body_is_found_and_of_any_other_the_status() -> None:
    body = {"error": {"code": "forbidden", "message": "not you", "details": {}}, "request_id": "1"}
    assert error_of(Answer(403, json.dumps(body).encode())) == ("forbidden", "not you")
    for junk in (b"", b"<html>", b"[]", b'{"error": "x"}', b'{"error": {"code": 1}}'):
        assert error_of(Answer(502, junk)) == ("", "the hive answered with status 502")


@pytest.mark.parametrize("value", ["0", "-1", "true", '"5"', "null", "1e300", "[]"])
def test_a_number_of_seconds_that_is_none_is_ignored(value: str) -> None:
    assert seconds_in(Answer(200, b'{"t": %s}' % value.encode()), "t") is None


def test_values_of_an_answer_are_read() -> None:
    answer = Answer(200, b'{"t": 5, "k": "key"}')
    assert (seconds_in(answer, "t"), text_in(answer, "k")) == (5.0, "key")
    assert (seconds_in(answer, "x"), text_in(answer, "t")) == (None, "")
    assert text_in(Answer(200, b"nonsense"), "k") == ""


def test_a_mailbox_wakes_for_posts_of_other_threads_and_for_signals() -> None:
    mailbox = Mailbox()
    before = signal.getsignal(signal.SIGUSR1)
    try:
        mailbox.listen_to([signal.SIGUSR1])
        assert mailbox.next(0.0) is None
        poster = threading.Thread(target=mailbox.post, args=(EngineIdle(),))
        poster.start()
        assert mailbox.next(30.0) == EngineIdle()
        poster.join(30)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert mailbox.next(30.0) == Signalled(signal.SIGUSR1)
        assert mailbox.next(0.0) is None
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGUSR1, before)


def test_no_post_is_lost_when_the_mailbox_is_full() -> None:
    mailbox = Mailbox()
    for _ in range(100_000):
        mailbox.post(EngineIdle())
    assert sum(mailbox.next(0.0) is not None for _ in range(100_001)) == 100_000


def test_a_request_is_taken_off_only_when_it_is_whole() -> None:
    whole = b"POST /x?y=1 HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"
    for cut in range(len(whole)):
        assert take_request(bytearray(whole[:cut])) is None
    buffer = bytearray(whole + b"GET ")
    request = take_request(buffer)
    assert request is not None
    assert (request.method, request.path, request.body) == ("POST", "/x", b"abc")
    assert buffer == b"GET "


def test_the_text_of_a_prompt_is_found_in_every_shape() -> None:
    assert prompt_text("a b") == "a b"
    assert prompt_text([{"content": "a"}, {"content": [{"type": "text", "text": "b"}]}]).split() == ["a", "b"]
    assert prompt_text([1, None, {}]).split() == []


def test_the_start_time_of_a_process_is_known() -> None:
    assert start_ticks(os.getpid()) > 0
    assert start_ticks(1 << 30) == 0
