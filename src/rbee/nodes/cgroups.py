"""A cgroup for each worker, where one is delegated to us: what is born in it cannot hide, and one write kills all."""

import errno
import os
import re
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger(__name__)

_NAME: Final = re.compile(r"rbee-([A-Za-z0-9._-]{1,128})\.([0-9]{1,12})")
_UNIFIED: Final = ""
_NO_MEMBERS: Final = (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP)
"""A group that is gone, is going while it is read, or leaves the list of its processes to the one above (threaded)."""
MEMORY_LIMIT: Final = "memory.max"
_OCTAL: Final = re.compile(r"\\([0-7]{3})")


def directory_in(cgroup: str, mountinfo: str, controller: str = _UNIFIED) -> Path | None:
    """Where a process's group is in the file system; None where that hierarchy is not mounted, or it is outside of it.

    *cgroup* and *mountinfo* are the texts of /proc/PID/cgroup and /proc/self/mountinfo (cgroups(7),
    proc_pid_mountinfo(5)); *controller* names a v1 hierarchy, empty the v2 one.
    """
    own = _path_of(cgroup, controller)
    if own is None or ".." in own.split("/"):
        return None
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.partition(" ")
        is_it = (
            kind == "cgroup" and controller in options.split(" ")[-1].split(",") if controller else kind == "cgroup2"
        )
        if not is_it:
            continue
        root, point = (_OCTAL.sub(lambda code: chr(int(code[1], 8)), field) for field in fields.split(" ")[3:5])
        if root == "/":
            return Path(point + own)
        if own == root or own.startswith(f"{root}/"):
            return Path(point + own.removeprefix(root))
    return None


def _path_of(cgroup: str, controller: str) -> str | None:
    for line in cgroup.splitlines():
        number, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") if controller else number == "0":
            return path.rstrip("/")
    return None


def directory_of(pid: int | str, controller: str = _UNIFIED) -> Path | None:
    """``directory_in`` for a living process, or 'self'. Raises OSError where that cannot be read just now."""
    try:
        return directory_in(_text(f"/proc/{pid}/cgroup"), _text("/proc/self/mountinfo"), controller)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def _text(path: str) -> str:
    return Path(path).read_text(errors="surrogateescape")


def delegated() -> Path | None:
    """Our own v2 group, where we may make groups in it; None for the root group, which is nobody's to divide."""
    own = directory_of("self")
    if own is None:
        return None
    # cgroup.kill: Linux 5.14 and later, and no root group has it.
    ours = (own / "cgroup.kill").exists() and os.access(own, os.W_OK) and os.access(own / "cgroup.procs", os.W_OK)
    return own if ours else None


def members(group: Path) -> list[int]:
    """The pids in it and in all groups below it; empty for one that is not there.

    Raises OSError where it cannot be looked into: that must not read as empty.
    """
    found: list[int] = []
    for folder, _, _ in os.walk(group, onerror=unless_gone):
        try:
            # 0 stands for one in another pid namespace.
            found += [pid for pid in map(int, Path(folder, "cgroup.procs").read_text().split()) if pid]
        except OSError as error:
            unless_gone(error)
    return list(dict.fromkeys(found))


def unless_gone(error: OSError) -> None:
    """Raise *error* unless it only says that the group is gone, or has not what was asked for."""
    if error.errno not in _NO_MEMBERS:
        raise error


def kill(group: Path) -> None:
    """SIGKILL to all that is in it, groups below included. Raises OSError where that cannot be written."""
    (group / "cgroup.kill").write_text("1")


def remove(group: Path) -> bool:
    """Remove it and what is below it. False where something still runs in it."""
    try:
        for folder, _, _ in os.walk(group, topdown=False, onerror=unless_gone):
            os.rmdir(folder)
    except OSError:
        return not group.exists()
    return True


class WorkerGroups:
    """The groups below *parent*, one an incarnation. With no parent there are none, and nothing here does anything.

    No controller is used in them unless *limits_memory*, for which *parent* has to hand down that of memory. Nothing
    but keepers is moved: what these start is born in the group.
    """

    def __init__(self, parent: Path | None, limits_memory: bool = False) -> None:
        self.parent = parent
        self._limits_memory = limits_memory
        self._elsewhere: dict[str, Path] = {}

    def join(self, worker_id: str, incarnation: int, pid: int, memory_limit_bytes: int | None = None) -> Path | None:
        """Move a process into the group of its incarnation; None where that is not possible."""
        name = _name(worker_id, incarnation)
        if self.parent is None or name is None:
            return None
        group = self.parent / name
        try:
            _enter(group, pid)
        except OSError as error:
            log.warning("no_cgroup_for_worker", worker_id=worker_id, cgroup=str(group), reason=str(error))
            return None
        if self._limits_memory and memory_limit_bytes is not None:
            self._limit(worker_id, group, memory_limit_bytes)
        return group

    def _limit(self, worker_id: str, group: Path, memory_limit_bytes: int) -> None:
        # What the process took before stays charged to the group that it came from: a few MiB.
        try:
            (group / MEMORY_LIMIT).write_text(str(memory_limit_bytes))
        except OSError as error:
            log.warning("no_memory_limit_for_worker", worker_id=worker_id, cgroup=str(group), reason=str(error))

    def adopt(self, worker_id: str, incarnation: int, pid: int) -> Path | None:
        """The group that an earlier hive gave to it, wherever that is; None where it is in none of ours.

        Raises OSError where that cannot be read just now.
        """
        name, group = _name(worker_id, incarnation), directory_of(pid)
        if name is None or group is None or group.name != name:
            return None
        self._elsewhere[name] = group
        return group

    def find(self, worker_id: str, incarnation: int) -> Path | None:
        name = _name(worker_id, incarnation)
        if name is None:
            return None
        group = self._elsewhere.get(name) or (None if self.parent is None else self.parent / name)
        return group if group is not None and group.is_dir() else None

    def forget(self, group: Path) -> bool:
        """Remove it. False where something still runs in it."""
        self._elsewhere.pop(group.name, None)
        return remove(group)

    def all(self) -> list[tuple[str, Path]]:
        """Every group below *parent* that has our form of name, with the incarnation's mark."""
        if self.parent is None:
            return []
        named = ((_NAME.fullmatch(path.name), path) for path in self.parent.glob("rbee-*"))
        return [(f"{match[1]}:{match[2]}", path) for match, path in named if match is not None]


def _name(worker_id: str, incarnation: int) -> str | None:
    name = f"rbee-{worker_id}.{incarnation}"
    return name if _NAME.fullmatch(name) else None


def _enter(group: Path, pid: int) -> None:
    for attempt in (1, 2):
        group.mkdir(exist_ok=True)
        try:
            (group / "cgroup.procs").write_text(str(pid))
        except FileNotFoundError:
            # Another hive below the same parent, which has just started, took it for an empty leftover.
            if attempt == 2:
                raise
        else:
            return
