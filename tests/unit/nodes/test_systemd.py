"""What a service manager hears of the daemon, on a real datagram socket."""

import fcntl
import os
import socket

import anyio
import pytest
from structlog.testing import capture_logs

from rbee.nodes.systemd import Notifier

pytestmark = pytest.mark.anyio


@pytest.fixture
def manager(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.setblocking(False)
        yield receiver


@pytest.fixture
def environ(manager):
    return {"NOTIFY_SOCKET": manager.getsockname()}


@pytest.fixture
def notifier(environ):
    built = Notifier(environ)
    yield built
    built.close()


def heard(manager):
    """All messages so far, each as a set of its lines."""
    messages = []
    while True:
        try:
            messages.append(set(manager.recv(4096).decode().splitlines()))
        except BlockingIOError:
            return messages


def test_the_whole_life_is_told(manager, notifier):
    notifier.extend_timeout(1.5)
    notifier.ready("Serving on http://127.0.0.1:9200")
    notifier.stopping("Draining 2 workers")
    assert heard(manager) == [
        {"EXTEND_TIMEOUT_USEC=1500000"},
        {"READY=1", "STATUS=Serving on http://127.0.0.1:9200"},
        {"STOPPING=1", "STATUS=Draining 2 workers"},
    ]


def test_a_status_is_one_line_and_fits_into_a_message(manager, notifier):
    notifier.stopping("two\nREADY=1 " + "\N{HONEY POT}" * 3000)
    (message,) = heard(manager)
    assert len(message) == 2
    assert any(line.startswith("STATUS=two READY=1 ") for line in message)


def test_an_abstract_name_is_an_address_too():
    name = f"rbee-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}")
        notifier = Notifier({"NOTIFY_SOCKET": f"@{name}"})
        notifier.ready("on")
        notifier.close()
        assert receiver.recv(4096) == b"READY=1\nSTATUS=on"


def test_the_socket_does_not_reach_children(notifier):
    assert fcntl.fcntl(notifier._socket.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
async def test_without_a_manager_every_call_does_nothing(environ):
    notifier = Notifier({**environ, "WATCHDOG_USEC": "1000000"})
    notifier.ready("on")
    notifier.stopping("off")
    notifier.extend_timeout(5)
    await notifier.run_watchdog()
    notifier.close()


async def test_the_watchdog_is_fed_twice_within_its_time(manager, environ):
    notifier = Notifier({**environ, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())})
    with anyio.move_on_after(61):
        await notifier.run_watchdog()
    notifier.close()
    assert heard(manager) == [{"WATCHDOG=1"}] * 5  # at 0, 15, 30, 45 and 60 s


@pytest.mark.parametrize(
    "watchdog",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "-5"},
        {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": ""},
    ],
)
async def test_a_watchdog_that_is_not_for_us_is_not_fed(manager, environ, watchdog):
    notifier = Notifier({**environ, **watchdog}, pid=77)
    await notifier.run_watchdog()
    notifier.close()
    assert heard(manager) == []


def test_a_lost_manager_is_logged_once_and_told_when_it_is_back(tmp_path):
    path = str(tmp_path / "notify")
    notifier = Notifier({"NOTIFY_SOCKET": path})
    with capture_logs() as logs:
        notifier.ready("on")
        notifier.extend_timeout(1)
    assert [entry["event"] for entry in logs] == ["service_manager_not_reached"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        notifier.extend_timeout(2)
        notifier.extend_timeout(3)
        receiver.setblocking(False)
        missed = {"READY=1", "STATUS=on", "EXTEND_TIMEOUT_USEC=2000000"}
        assert heard(receiver) == [missed, {"EXTEND_TIMEOUT_USEC=3000000"}]
    with capture_logs() as logs:
        notifier.stopping("gone again")
    assert len(logs) == 1
    notifier.close()


def test_a_manager_that_takes_nothing_does_not_hold_us_up(manager, notifier):
    """Its queue is full long before so many; a blocking socket would wait here for ever."""
    with capture_logs() as logs:
        for number in range(10_000):
            notifier.extend_timeout(number)
    assert len(logs) == 1
    heard(manager)
    notifier.extend_timeout(1)
    assert heard(manager) == [{"EXTEND_TIMEOUT_USEC=1000000"}]


def test_a_start_that_was_never_told_is_not_told_after_the_end(tmp_path):
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    notifier.ready("on")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        notifier.stopping("off")
        receiver.setblocking(False)
        assert heard(receiver) == [{"STOPPING=1", "STATUS=off"}]
    notifier.close()
