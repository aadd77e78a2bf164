"""A hive that has few descriptors, or none left: no worker pays for it."""

import contextlib
import resource
import socket
import sys
import time
from contextlib import ExitStack

import pytest

from tests.hives import QUICK, Hive, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux's own")
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Limited(Hive):
    """One that may have a hundred descriptors."""

    def command(self):
        return ["/bin/sh", "-c", 'ulimit -n 100 && exec "$@"', "sh", *super().command()]


@pytest.fixture
def limited(tmp_path):
    hive = Limited(tmp_path / "state", {**QUICK, "monitor.interval": "1s"})
    try:
        yield hive.start()
    finally:
        hive.end()


def ask(connection):
    """What comes of one request; nothing where the connection has been ended."""
    with contextlib.suppress(OSError):
        connection.sendall(LIVEZ)
        return connection.recv(65536)
    return b""


def connect(stack, hive):
    return stack.enter_context(socket.create_connection((hive.host, hive.port), 30))


def beats(hive):
    return len(hive.log("Received heartbeat"))


def test_idle_clients_take_no_descriptor_that_workers_need(limited):
    workers = [limited.ready()["worker_id"] for _ in range(3)]
    with ExitStack() as stack:
        clients = [connect(stack, limited) for _ in range(76)]
        answers = [ask(client) for client in clients]
        assert any(answer.startswith(b"HTTP/1.1 200") for answer in answers)
        heard = beats(limited)
        wait_for(lambda: beats(limited) >= heard + 3 * 8, "every worker has beaten for longer than its deadline")
        assert limited.get("/livez").status == 200
        assert [limited.worker(worker_id)["state"] for worker_id in workers] == ["idle"] * 3
    assert limited.metric("rbee_hive_workers_stale_total") == 0
    assert limited.log("hive_out_of_descriptors") == []


def test_a_hive_without_a_descriptor_left_ends_nobody(limited):
    """Neither for beats that it could not accept nor for questions that it could not ask; and it lives on itself."""
    workers = [limited.ready()["worker_id"] for _ in range(3)]
    soft, hard = resource.prlimit(limited.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(limited.process.pid, resource.RLIMIT_NOFILE, (3, hard))
    wait_for(lambda: limited.log("hive_out_of_descriptors"), "it has noticed")
    # The only way to let real time pass for others: three times their deadline, and one look at the machine.
    time.sleep(7.0)
    assert limited.process.poll() is None
    resource.prlimit(limited.process.pid, resource.RLIMIT_NOFILE, (soft, hard))
    wait_for(lambda: limited.log("hive_has_descriptors_again"), "it has noticed that, too")
    heard = beats(limited)
    wait_for(lambda: beats(limited) >= heard + 6, "workers beat again")
    seen = [limited.worker(worker_id) for worker_id in workers]
    assert [(worker["state"], worker["incarnation"]) for worker in seen] == [("idle", 1)] * 3
    assert limited.metric("rbee_hive_workers_stale_total") == 0
    assert len(limited.log("hive_out_of_descriptors")) == 1
    assert len(limited.log("machine_not_read")) == 1
