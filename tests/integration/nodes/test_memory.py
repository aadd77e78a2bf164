"""The memory of this very machine, and of a real group with a limit where one can be made (v1, or v2)."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from rbee.nodes import cgroups, memory
from tests.integration.nodes.exhausted import no_descriptors

MIB = 2**20
LIMIT = 512 * MIB
HELD = 96 * MIB
SLACK = 32 * MIB
"""What an interpreter takes beside, and what the kernel counts by batches."""

PROGRAM = """
import ctypes, json, mmap, os, sys
from dataclasses import asdict
group, folder, held = sys.argv[1], sys.argv[2], int(sys.argv[3])
with open(group + "/cgroup.procs", "w") as procs:
    procs.write(str(os.getpid()))
from rbee.nodes import memory
def tell(what):
    print(json.dumps([what, asdict(memory.read())]), flush=True)
tell("empty")
private = mmap.mmap(-1, held, flags=mmap.MAP_PRIVATE)
private[::4096] = b"x" * len(private[::4096])
tell("private")
private.close()
file = open(folder + "/file", "w+b")
for _ in range(held >> 20):
    file.write(bytes(1 << 20))
file.flush()
os.fsync(file.fileno())
mapped = mmap.mmap(file.fileno(), held)
mapped[::4096]
tell("cached")
address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
if ctypes.CDLL(None).mlock(ctypes.c_void_p(address), ctypes.c_size_t(held)) == 0:
    tell("locked")
    ctypes.CDLL(None).munlock(ctypes.c_void_p(address), ctypes.c_size_t(held))
shared = mmap.mmap(-1, held)
shared[::4096] = b"x" * len(shared[::4096])
tell("shared")
"""


@pytest.fixture
def group(worker_id):
    """One with a limit, below our own; skipped where this user may make none, or memory is not limited by groups."""
    for controller, limit in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        own = cgroups.directory_of("self", controller)
        path = None if own is None else own / f"test-{worker_id}"
        try:
            if path is not None:
                path.mkdir()
                (path / limit).write_text(str(LIMIT))
                break
        except OSError:
            with contextlib.suppress(OSError):
                path.rmdir()
    else:
        pytest.skip("no group with a limit can be made here")
    yield path
    assert cgroups.remove(path)


@pytest.fixture
def told(group, tmp_path):
    """What a process in the group read, by what it held at that moment."""
    command = [sys.executable, "-c", PROGRAM, str(group), str(tmp_path), str(HELD)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return dict(json.loads(line) for line in done.stdout.splitlines())


def test_a_real_limit_is_found_and_only_what_cannot_be_given_back_counts(told):
    left = {what: reading["group_left_bytes"] for what, reading in told.items()}
    assert {reading["group_limit_bytes"] for reading in told.values()} == {LIMIT}
    assert LIMIT - SLACK <= left["empty"] <= LIMIT
    assert left["private"] == pytest.approx(left["empty"] - HELD, abs=SLACK)
    assert left["cached"] == pytest.approx(left["empty"], abs=SLACK)
    assert left["shared"] == pytest.approx(left["empty"] - HELD, abs=SLACK)


def test_pages_of_files_that_are_locked_are_not_page_cache(told):
    if "locked" not in told:
        pytest.skip("so much cannot be locked here")
    empty, locked = told["empty"]["group_left_bytes"], told["locked"]["group_left_bytes"]
    assert locked == pytest.approx(empty - HELD, abs=SLACK)


def test_the_machine_says_what_psutil_says():
    mine, theirs = memory.read(), psutil.virtual_memory()
    assert mine.total_bytes == theirs.total
    assert mine.available_bytes == pytest.approx(theirs.available, abs=theirs.total / 4)
    assert 0 < mine.free_bytes <= mine.available_bytes


def test_the_groups_of_this_process_are_those_of_the_kernel():
    text = Path("/proc/self/cgroup").read_text()
    for found in memory.own_groups():
        assert (found.directory / "cgroup.procs").exists()
        assert found.directory.name in text or found.directory.name in ("memory", "unified", "cgroup")


def test_without_a_descriptor_nothing_is_taken_for_unlimited():
    with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
        memory.read()
