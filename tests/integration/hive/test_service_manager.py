"""What a hive tells the service manager that started it (sd_notify(3))."""

import signal
import socket

import pytest


@pytest.fixture
def manager(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(60)
        yield receiver


def next_with(receiver, start):
    """The next message with a line that starts so; the lines of it."""
    while True:
        lines = receiver.recv(4096).decode().splitlines()
        if any(line.startswith(start) for line in lines):
            return lines


def test_a_hive_tells_when_it_is_ready_that_it_lives_and_that_it_stops(start_hive, manager):
    environ = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "400000"}
    hive = start_hive({"lifecycle.shutdown_timeout": "20s"}, environ=environ)
    assert "READY=1" in next_with(manager, "READY=")
    assert next_with(manager, "WATCHDOG=") == ["WATCHDOG=1"]
    worker = hive.ready()
    for pid in (worker["pid"], worker["engine_pid"]):
        with open(f"/proc/{pid}/environ", "rb") as file:
            assert b"NOTIFY_SOCKET" not in file.read()
    hive.signal(signal.SIGTERM)
    assert next_with(manager, "EXTEND_TIMEOUT_USEC=") == ["EXTEND_TIMEOUT_USEC=30000000"]
    assert "STOPPING=1" in next_with(manager, "STOPPING=")
    assert hive.process.wait(60) == 0


def test_a_hive_that_takes_over_workers_is_ready_only_when_it_knows_them(start_hive, manager):
    first = start_hive()
    worker = first.ready()
    first.signal(signal.SIGKILL)
    first.process.wait(60)
    second = start_hive(port=first.port, environ={"NOTIFY_SOCKET": manager.getsockname()})
    assert "READY=1" in next_with(manager, "READY=")
    assert second.worker(worker["worker_id"])["pid"] == worker["pid"]
