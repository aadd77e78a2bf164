"""What a process and all below it use: memory, processor time, bytes read."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import psutil

from rbee.core.launch import Footprint
from rbee.nodes.processes import LINUX, read_file

_KIB: Final = 1024
_TICKS: Final = os.sysconf("SC_CLK_TCK")


def measure(pids: Sequence[int]) -> Mapping[int, Footprint]:
    """What each of *pids* uses with all below it; one that is gone is left out. Blocking."""
    footprints = ((pid, _sum(pid)) for pid in pids)
    return {pid: footprint for pid, footprint in footprints if footprint is not None}


def _sum(pid: int) -> Footprint | None:
    parts = [found for member in tree(pid) if (found := _one(member)) is not None]
    if not parts:
        return None
    return Footprint(
        rss_bytes=sum(part.rss_bytes for part in parts),
        private_bytes=sum(part.private_bytes for part in parts),
        cpu_seconds=sum(part.cpu_seconds for part in parts),
        read_bytes=sum(part.read_bytes for part in parts),
    )


def tree(pid: int) -> list[int]:
    """*pid* and all below it. What a subreaper among them took over is below that one, so it stays."""
    if not LINUX:
        return [pid, *_below_elsewhere(pid)]
    found = [pid]
    seen = {pid}
    for parent in found:
        # A process may move to another parent while we look, so it could be met twice.
        fresh = [child for child in _children(parent) if child not in seen]
        seen.update(fresh)
        found += fresh
    return found


def _children(pid: int) -> Iterator[int]:
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return
    for task in tasks:
        if found := _read(f"/proc/{pid}/task/{task}/children"):
            yield from map(int, found.split())


def _below_elsewhere(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []


def _one(pid: int) -> Footprint | None:
    if not LINUX:
        return _one_elsewhere(pid)
    status = _fields(f"/proc/{pid}/status", b"VmRSS", b"RssAnon", b"RssShmem")
    stat = _read(f"/proc/{pid}/stat")
    # A zombie has no memory lines any more.
    if status is None or not stat:
        return None
    rss, private, shared = status
    # The command's name may hold any byte: fields are counted from behind it; utime is the 14th, stime the 15th.
    times = stat[stat.rindex(b")") + 2 :].split()[11:13]
    moved = _fields(f"/proc/{pid}/io", b"rchar", b"read_bytes") or [0]
    return Footprint(
        rss_bytes=rss * _KIB,
        private_bytes=(private + shared) * _KIB,
        cpu_seconds=sum(map(int, times)) / _TICKS,
        # rchar moves with every read(), from the page cache too; read_bytes also when a mapped file comes from the
        # disk. One of them moves whenever a model is loaded, except a mapped file that is in the cache already: then
        # the resident memory does. A read() from the disk counts twice, which does no harm to a sign of progress.
        read_bytes=sum(moved),
    )


def _one_elsewhere(pid: int) -> Footprint | None:
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            rss, times = process.memory_info().rss, process.cpu_times()
    except psutil.Error:
        return None
    return Footprint(rss_bytes=rss, private_bytes=rss, cpu_seconds=times.user + times.system)


def _fields(path: str, *names: bytes) -> list[int] | None:
    """The numbers behind *names* in a file with one ``name: number`` a line; None where any is missing."""
    data = b"\n" + _read(path)
    found: list[int] = []
    for name in names:
        _, there, rest = data.partition(b"\n" + name + b":")
        if not there:
            return None
        found.append(int(rest.split(maxsplit=1)[0]))
    return found


def _read(path: str) -> bytes:
    try:
        return read_file(path)
    except OSError:
        return b""
