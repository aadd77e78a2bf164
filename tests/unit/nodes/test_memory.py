"""What is left, from recorded files: the machine's meminfo, and groups of both versions."""

import os

import pytest

from rbee.nodes import memory
from rbee.nodes.memory import UNIFIED, V1, Group

GIB = 2**30
TOTAL, AVAILABLE = 64 * GIB, 40 * GIB
V1_NONE = 2**63 - 4096


@pytest.fixture
def meminfo(tmp_path):
    path = tmp_path / "meminfo"
    path.write_text(
        f"MemTotal: {TOTAL // 1024} kB\nMemFree: 1 kB\nMemAvailable: {AVAILABLE // 1024} kB\nCached: 0 kB\n"
    )
    return path


@pytest.fixture
def mount(tmp_path):
    path = tmp_path / "cgroup"
    path.mkdir()
    (path / "cgroup.procs").touch()
    return path


def unified(directory, limit, use, **stat):
    """One group of v2; *stat* in bytes, as its memory.stat has them."""
    directory.mkdir(exist_ok=True)
    (directory / "cgroup.procs").touch()
    (directory / "memory.max").write_text(f"{limit}\n")
    (directory / "memory.current").write_text(f"{use}\n")
    lines = {"anon": 1, "file": 1, "active_file": 0, "inactive_file": 0, "shmem": 0, **stat}
    (directory / "memory.stat").write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
    return directory


def v1(directory, limit, use, hierarchical=V1_NONE, **stat):
    directory.mkdir(exist_ok=True)
    (directory / "cgroup.procs").touch()
    (directory / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (directory / "memory.usage_in_bytes").write_text(f"{use}\n")
    lines = {"hierarchical_memory_limit": hierarchical, "total_active_file": 0, "total_inactive_file": 0, **stat}
    (directory / "memory.stat").write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
    return directory


def test_without_a_group_the_kernels_word_counts(meminfo):
    found = memory.read(meminfo, [])
    assert (found.total_bytes, found.available_bytes, found.free_bytes) == (TOTAL, AVAILABLE, AVAILABLE)
    assert (found.group_limit_bytes, found.group_left_bytes) == (None, None)


def test_the_root_group_has_no_limit(meminfo, mount):
    assert memory.read(meminfo, [Group(mount, UNIFIED)]).group_left_bytes is None


def test_page_cache_does_not_count_and_shared_memory_does(meminfo, mount):
    cached = {"file": 6 * GIB, "shmem": 2 * GIB, "active_file": 1 * GIB, "inactive_file": 2 * GIB}
    group = unified(mount / "hive", 16 * GIB, 10 * GIB, **cached)
    found = memory.read(meminfo, [Group(group, UNIFIED)])
    # 10 are used, 3 of them on the lists of file pages; the sixth of the file pages is locked.
    assert (found.group_limit_bytes, found.group_left_bytes, found.free_bytes) == (16 * GIB, 9 * GIB, 9 * GIB)


def test_the_group_above_counts_where_it_leaves_less(meminfo, mount):
    above = unified(mount / "pod", 20 * GIB, 19 * GIB)
    own = unified(above / "hive", 10 * GIB, 1 * GIB)
    found = memory.read(meminfo, [Group(own, UNIFIED)])
    assert (found.group_limit_bytes, found.group_left_bytes) == (20 * GIB, 1 * GIB)


def test_the_own_group_counts_where_it_leaves_less(meminfo, mount):
    above = unified(mount / "pod", 20 * GIB, 9 * GIB)
    own = unified(above / "hive", 10 * GIB, 9 * GIB)
    assert memory.read(meminfo, [Group(own, UNIFIED)]).group_limit_bytes == 10 * GIB


def test_the_machine_counts_where_it_has_less_than_the_group(meminfo, mount):
    own = unified(mount / "hive", 60 * GIB, 0)
    assert memory.read(meminfo, [Group(own, UNIFIED)]).free_bytes == AVAILABLE


@pytest.mark.parametrize("limit", ["max", TOTAL, TOTAL * 2])
def test_a_limit_that_the_machine_does_not_reach_is_none(meminfo, mount, limit):
    assert memory.read(meminfo, [Group(unified(mount / "hive", limit, 0), UNIFIED)]).group_limit_bytes is None


def test_a_group_over_its_limit_has_nothing_left(meminfo, mount):
    own = unified(mount / "hive", 1 * GIB, 2 * GIB)
    assert memory.read(meminfo, [Group(own, UNIFIED)]).free_bytes == 0


def test_a_v1_group_is_read_by_its_own_names(meminfo, mount):
    own = v1(mount / "hive", 16 * GIB, 10 * GIB, hierarchical=16 * GIB, total_active_file=1 * GIB, active_file=7 * GIB)
    found = memory.read(meminfo, [Group(own, V1)])
    assert (found.group_limit_bytes, found.group_left_bytes) == (16 * GIB, 7 * GIB)


def test_a_v1_group_without_a_limit_has_none(meminfo, mount):
    assert memory.read(meminfo, [Group(v1(mount / "hive", V1_NONE, 10 * GIB), V1)]).group_limit_bytes is None


def test_a_limit_above_a_v1_mount_is_known_though_its_group_is_invisible(meminfo, mount):
    own = v1(mount, V1_NONE, 1 * GIB, hierarchical=4 * GIB)
    found = memory.read(meminfo, [Group(own, V1)])
    assert (found.group_limit_bytes, found.group_left_bytes) == (4 * GIB, 3 * GIB)


def test_of_two_hierarchies_the_one_that_leaves_least_counts(meminfo, mount):
    (mount / "v1").mkdir()
    groups = [Group(unified(mount / "hive", 8 * GIB, 0), UNIFIED), Group(v1(mount / "v1" / "x", 4 * GIB, 0), V1)]
    assert memory.read(meminfo, groups).group_limit_bytes == 4 * GIB


def test_a_group_that_cannot_be_read_is_not_one_without_a_limit(meminfo, mount):
    own = unified(mount / "hive", 1 * GIB, 0)
    (own / "memory.current").unlink()
    (own / "memory.current").mkdir()
    with pytest.raises(IsADirectoryError):
        memory.read(meminfo, [Group(own, UNIFIED)])


def test_a_kernel_that_does_not_say_what_is_available_is_an_error(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 1 kB\n")
    with pytest.raises(OSError, match="MemAvailable"):
        memory.read(tmp_path / "meminfo", [])


def test_pages_that_processors_keep_on_their_lists_are_free_too(meminfo):
    text = """Node 0, zone      DMA
  pages free     2816
  pagesets
    cpu: 0
              count:    100
              high:     194560
    cpu: 1
              count:    28
              high:     194560
Node 0, zone   Normal
    cpu: 0
              count:    1000
"""
    meminfo.with_name("zoneinfo").write_text(text)
    assert memory.read(meminfo, []).available_bytes == AVAILABLE + 1128 * os.sysconf("SC_PAGE_SIZE")
