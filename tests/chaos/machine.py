"""What /proc, the state directory and the database say, whatever the hive believes."""

import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from tests.hives import is_alive, pids

Mark = tuple[str, int | None]
"""Worker id and incarnation; the incarnation is None for a process that carries none."""

_LISTENING = "0A"


def worker_processes(state_dir: Path, known_ids: set[str]) -> dict[int, Mark]:
    """Every living process of any worker of this hive: by its mark, or because it runs in a worker's folder."""
    found: dict[int, Mark] = {}
    for pid in pids():
        folder = _worker_folder(pid, state_dir)
        mark = _mark(pid)
        mine = folder is not None or (mark is not None and mark[0] in known_ids)
        if mine and is_alive(pid):
            found[pid] = mark if mark is not None else (folder or "", None)
    return found


def described(pid: int) -> str:
    words = _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace")
    return f"pid {pid} ({words[:120].strip()})"


def listeners(first: int, last: int) -> dict[int, list[int]]:
    """The ports of that range on which somebody listens, each with the pids that hold the socket."""
    inodes: dict[str, int] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in _read(table).decode().splitlines()[1:]:
            fields = line.split()
            port = int(fields[1].rpartition(":")[2], 16)
            if fields[3] == _LISTENING and first <= port <= last:
                inodes[fields[9]] = port
    found: dict[int, list[int]] = {port: [] for port in inodes.values()}
    for pid in pids() if inodes else []:
        for inode in set(_socket_inodes(pid)) & set(inodes):
            found[inodes[inode]].append(pid)
    return found


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    found = re.search(rb"^Threads:\s*(\d+)", _read(f"/proc/{pid}/status"), re.MULTILINE)
    return int(found[1]) if found else 0


def folders(state_dir: Path) -> set[str]:
    try:
        return set(os.listdir(state_dir / "workers"))
    except FileNotFoundError:
        return set()


def rows(state_dir: Path) -> dict[str, int]:
    """Worker id -> incarnation, as the database holds them; nothing is written."""
    connection = sqlite3.connect(f"file:{state_dir / 'rbee.db'}?mode=ro", uri=True, timeout=10)
    try:
        return dict(connection.execute("SELECT worker_id, incarnation FROM workers"))
    finally:
        connection.close()


def _mark(pid: int) -> Mark | None:
    found = re.search(rb"(?:^|\0)RBEE_WORKER_INCARNATION=([^:\0]*):(\d*)", _read(f"/proc/{pid}/environ"))
    if found is None:
        return None
    return found[1].decode(), int(found[2]) if found[2] else None


def _worker_folder(pid: int, state_dir: Path) -> str | None:
    try:
        here = os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return None
    workers = f"{state_dir}/workers/"
    return here.removeprefix(workers).split("/")[0].split(" ")[0] if here.startswith(workers) else None


def _socket_inodes(pid: int) -> Iterator[str]:
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for name in names:
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        if target.startswith("socket:["):
            yield target[8:-1]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
