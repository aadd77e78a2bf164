"""What a process and all below it use: memory, processor time, bytes read."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

from rbee.core.launch import Footprint
from rbee.nodes.processes import LINUX

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
        yield from map(int, _read(f"/proc/{pid}/task/{task}/children").split())


def _below_elsewhere(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []


def _one(pid: int) -> Footprint | None:
    if not LINUX:
        return _one_elsewhere(pid)
    status = _fields(f"/proc/{pid}/status")
    stat = _read(f"/proc/{pid}/stat")
    # A zombie has no memory lines any more.
    if "VmRSS" not in status or not stat:
        return None
    # The command's name may hold any byte: fields are counted from behind it; utime is the 14th, stime the 15th.
    times = stat[stat.rindex(b")") + 2 :].split()[11:13]
    moved = _fields(f"/proc/{pid}/io")
    return Footprint(
        rss_bytes=status["VmRSS"] * _KIB,
        private_bytes=(status["RssAnon"] + status["RssShmem"]) * _KIB,
        cpu_seconds=sum(map(int, times)) / _TICKS,
        # rchar moves with every read(), from the page cache too; read_bytes also when a mapped file comes from the
        # disk. One of them moves whenever a model is loaded, except a mapped file that is in the cache already: then
        # the resident memory does. A read() from the disk counts twice, which does no harm to a sign of progress.
        read_bytes=moved.get("rchar", 0) + moved.get("read_bytes", 0),
    )


def _one_elsewhere(pid: int) -> Footprint | None:
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            rss, times = process.memory_info().rss, process.cpu_times()
    except psutil.Error:
        return None
    return Footprint(rss_bytes=rss, private_bytes=rss, cpu_seconds=times.user + times.system)


def _fields(path: str) -> dict[str, int]:
    """The numbers of a file with one ``name: number`` a line."""
    found: dict[str, int] = {}
    for line in _read(path).splitlines():
        name, _, value = line.partition(b":")
        number = value.split()[:1]
        if number and number[0].isdigit():
            found[name.decode()] = int(number[0])
    return found


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
