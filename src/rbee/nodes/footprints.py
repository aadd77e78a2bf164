"""What a process and all below it use: memory, processor time, bytes read."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Final

import psutil

from rbee.core.launch import Footprint
from rbee.nodes.processes import LINUX, fields_of, read_file

_KIB: Final = 1024
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_MEMORY: Final = (b"VmLck", b"VmHWM", b"VmRSS", b"RssAnon", b"RssFile", b"RssShmem")


def measure(pids: Sequence[int]) -> Mapping[int, Footprint]:
    """What each of *pids* uses with all below it; one that is gone is left out. Blocking."""
    # A keeper and its engine are both asked for, and the one contains the other: each is looked at once.
    one, children = cache(_one), cache(_children)
    footprints = ((pid, _sum(pid, one, children)) for pid in pids)
    return {pid: footprint for pid, footprint in footprints if footprint is not None}


def measure_exactly(pid: int) -> Footprint | None:
    """As ``measure``, with memory that processes share counted once; None for one that is gone.

    Blocking, for as long as the kernel takes to walk through all pages (44-83 ms for 5 GiB). What it cannot or may
    not tell of a process is taken from the quicker measurement.
    """
    return _sum(pid, _one_exactly, _children)


def _sum(pid: int, one: Callable[[int], Footprint | None], children: Callable[[int], list[int]]) -> Footprint | None:
    parts = {member: found for member in tree(pid, children) if (found := one(member)) is not None}
    if not parts:
        return None
    values = parts.values()
    return Footprint(
        rss_bytes=sum(part.rss_bytes for part in values),
        private_bytes=sum(part.private_bytes for part in values),
        cpu_seconds=sum(part.cpu_seconds for part in values),
        read_bytes=sum(part.read_bytes for part in values),
        locked_bytes=sum(part.locked_bytes for part in values),
        peak_rss_bytes=sum(part.peak_rss_bytes for part in values),
        pids=tuple(parts),
    )


def tree(pid: int, children: Callable[[int], list[int]] | None = None) -> list[int]:
    """*pid* and all below it. What a subreaper among them took over is below that one, so it stays."""
    if not LINUX:
        return [pid, *_below_elsewhere(pid)]
    children = children or _children
    found = [pid]
    seen = {pid}
    for parent in found:
        # A process may move to another parent while we look, so it could be met twice.
        fresh = [child for child in children(parent) if child not in seen]
        seen.update(fresh)
        found += fresh
    return found


def _children(pid: int) -> list[int]:
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    return [int(child) for task in tasks for child in _read(f"/proc/{pid}/task/{task}/children").split()]


def _below_elsewhere(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []


def _one(pid: int) -> Footprint | None:
    if not LINUX:
        return _one_elsewhere(pid)
    status = _fields(f"/proc/{pid}/status", *_MEMORY)
    stat = _read(f"/proc/{pid}/stat")
    # A zombie has no memory lines any more.
    if status is None or not stat:
        return None
    locked, peak, rss, anonymous, mapped, shared = status
    # The command's name may hold any byte: fields are counted from behind it; utime is the 14th, stime the 15th.
    times = stat[stat.rindex(b")") + 2 :].split()[11:13]
    moved = _fields(f"/proc/{pid}/io", b"rchar", b"read_bytes") or [0]
    return Footprint(
        rss_bytes=rss * _KIB,
        private_bytes=(anonymous + shared) * _KIB,
        cpu_seconds=sum(map(int, times)) / _TICKS,
        # rchar moves with every read(), from the page cache too; read_bytes also when a mapped file comes from the
        # disk. One of them moves whenever a model is loaded, except a mapped file that is in the cache already: then
        # the resident memory does. A read() from the disk counts twice, which does no harm to a sign of progress.
        read_bytes=sum(moved),
        # Locked memory may be anonymous, which is counted already, and a file that is mapped twice counts twice.
        locked_bytes=min(locked, mapped) * _KIB,
        peak_rss_bytes=peak * _KIB,
        pids=(pid,),
    )


def _one_exactly(pid: int) -> Footprint | None:
    found = _one(pid)
    if found is None:
        return None
    # Linux 5.4 and later.
    shares = _fields(f"/proc/{pid}/smaps_rollup", b"Pss_Anon", b"Pss_Shmem")
    return found if shares is None else replace(found, private_bytes=sum(shares) * _KIB)


def _one_elsewhere(pid: int) -> Footprint | None:
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            rss, times = process.memory_info().rss, process.cpu_times()
    except psutil.Error:
        return None
    return Footprint(
        rss_bytes=rss,
        private_bytes=rss,
        cpu_seconds=times.user + times.system,
        peak_rss_bytes=rss,
        pids=(pid,),
    )


def _fields(path: str, *names: bytes) -> list[int] | None:
    return fields_of(_read(path), *names)


def _read(path: str) -> bytes:
    try:
        return read_file(path)
    except OSError:
        return b""
