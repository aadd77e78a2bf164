"""Fixtures of the tests with a real machine: no jumping clock, for the kernel does not follow it."""

import os
import subprocess
import uuid

import pytest

from rbee.core.launch import StoredWorker
from rbee.core.worker import WorkerSpec
from rbee.nodes.cgroups import WorkerGroups
from rbee.nodes.local import LocalNode


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def worker_id():
    """One that no other test, nor another run of them, sweeps."""
    return f"w-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def row(worker_id):
    return StoredWorker(WorkerSpec(worker_id, "synthetic:x"), 7)


@pytest.fixture
def node(tmp_path):
    """Without cgroups, so that marks alone have to do."""
    return LocalNode(tmp_path / "workers", dict(os.environ), 10**6, keep=5, groups=WorkerGroups(None))


@pytest.fixture
def start_sleeper():
    """Starts processes with the environment that a test gives them, and ends them."""
    children = []

    def start(environ):
        children.append(subprocess.Popen(["/bin/sleep", "600"], env=environ))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.wait()
