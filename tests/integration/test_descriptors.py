"""A hive that can open no file lives on with what it has."""

import resource
import sys

import pytest

from tests.hives import running_hive, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux's own")


def test_a_hive_out_of_descriptors_keeps_its_workers_and_serves_again_once_there_are_some(tmp_path):
    with running_hive(tmp_path / "hive") as hive:
        worker = hive.ready()
        soft, hard = resource.prlimit(hive.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(hive.process.pid, resource.RLIMIT_NOFILE, (0, hard))
        wait_for(lambda: hive.process.poll() is not None or hive.log("machine_not_read"), "it has missed them")
        resource.prlimit(hive.process.pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert hive.process.poll() is None
        now = hive.worker(worker["worker_id"])
        assert (now["state"], now["pid"]) == ("idle", worker["pid"])
