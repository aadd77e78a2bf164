"""Cgroups in which the kernel itself holds a worker to its memory: v2, where a controller is handed down to us."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from rbee.nodes import cgroups, footprints
from rbee.nodes.cgroups import WorkerGroups

log = structlog.get_logger(__name__)

LEAF: Final = "hive"
"""The group of the hive itself. A group that hands a controller down may hold no processes (cgroups(7)), so the hive
goes into one beside its workers."""


def worker_groups(own: Path | None = None) -> WorkerGroups:
    """Groups that can limit memory. Where that cannot be: as without hard limits, and why is logged.

    *own*: our group, the kernel's word unless given. Processes are moved; call it before any is started. Blocking.
    """
    try:
        own = cgroups.delegated() if own is None else own
        return WorkerGroups(hand_down(own, "memory"), limits_memory=True)
    except OSError as error:
        log.warning("hard_memory_limit_not_possible", reason=str(error))
        return WorkerGroups(own)


def hand_down(own: Path | None, controller: str) -> Path:
    """Have *controller* in the groups to come below the returned one: *own*, which is delegated to us, or that above.

    Raises OSError, with the reason in words, where that cannot be; everything is where it was then.
    """
    if own is None:
        raise OSError("no cgroup v2 is delegated to this process")
    parent = own.parent if own.name == LEAF and _is_ours(own.parent) else own
    if controller not in (parent / "cgroup.controllers").read_text().split():
        raise OSError(f"the controller {controller} is not handed down to {parent}")
    if parent == own:
        # systemd starts the next hive in this very group, which it could not while workers of this one live.
        if own.name.endswith(".service"):
            raise OSError(f"{own} is of a service without DelegateSubgroup={LEAF} (systemd 254)")
        _make_room(own)
    try:
        (parent / "cgroup.subtree_control").write_text(f"+{controller}")
    except OSError as error:
        if parent == own:
            _move_back(own)
        raise OSError(f"{parent} cannot hand down {controller}: {error.strerror}") from error
    return parent


def _is_ours(group: Path) -> bool:
    # The root group has no cgroup.type, and is nobody's to divide.
    files = (group / "cgroup.procs", group / "cgroup.subtree_control")
    return (group / "cgroup.type").exists() and all(os.access(path, os.W_OK) for path in files)


def _make_room(own: Path) -> None:
    """Move this process and what it has started into the leaf."""
    ours = set(footprints.tree(os.getpid()))
    here = {int(pid) for pid in (own / "cgroup.procs").read_text().split()}
    if strangers := here - ours:
        raise OSError(f"{own} has other processes, too: {', '.join(map(str, sorted(strangers)[:5]))}")
    leaf = own / LEAF
    leaf.mkdir(exist_ok=True)
    _move(here, leaf)


def _move_back(own: Path) -> None:
    leaf = own / LEAF
    with suppress(OSError):
        _move(set(cgroups.members(leaf)), own)
        leaf.rmdir()


def _move(pids: set[int], group: Path) -> None:
    for pid in sorted(pids):
        try:
            (group / "cgroup.procs").write_text(str(pid))
        except ProcessLookupError:
            continue
