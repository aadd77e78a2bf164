"""A stand-in for a keeper and what engines do below it: real processes, as a test describes them."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rbee.nodes import marks, processes
from tests.hives import DEADLINE

MEMBER = Path(__file__).with_name("member.py")


@dataclass
class Member:
    """``bare``: it gets no environment, so no mark. ``leaves``: it ends once it has told. ``names_itself``: those below
    carry the keeper's own mark. Once it is gone any hive that starts on this machine may end them."""

    name: str
    setsid: bool = False
    bare: bool = False
    listens: bool = False
    leaves: bool = False
    subreaper: bool = False
    names_itself: bool = False
    hold_bytes: int = 0
    children: list["Member"] = field(default_factory=list)


@dataclass
class Told:
    pid: int
    port: int
    started: int


class Family:
    """The keeper of one incarnation and those below it, by name; held, so that none is missed at the end."""

    def __init__(self, mark: str, root: Member) -> None:
        environ = {**os.environ, marks.INCARNATION_VARIABLE: mark} if mark else dict(os.environ)
        self.keeper = subprocess.Popen(
            [sys.executable, "-S", MEMBER, json.dumps(asdict(root))],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.members: dict[str, Told] = {}
        self._holds: list[processes.Handle] = []

    def let(self) -> None:
        assert self.keeper.stdin is not None
        self.keeper.stdin.close()

    def hear(self, size: int) -> None:
        """Until all have told who they are."""
        assert self.keeper.stdout is not None
        while len(self.members) < size:
            assert select.select([self.keeper.stdout], [], [], DEADLINE)[0], f"only {self.members} have spoken"
            for line in os.read(self.keeper.stdout.fileno(), 65536).splitlines():
                name, told = json.loads(line)
                self.members[name] = Told(**told)
                with contextlib.suppress(ProcessLookupError):
                    self._holds.append(processes.Handle(told["pid"]))

    def __getitem__(self, name: str) -> Told:
        return self.members[name]

    def alive(self, name: str) -> bool:
        told = self.members[name]
        return processes.start_time(told.pid) == told.started

    def kill_keeper(self) -> None:
        self.keeper.kill()
        self.keeper.wait()

    def end(self) -> None:
        for hold in self._holds:
            hold.signal(signal.SIGKILL)
            hold.close()
        self.kill_keeper()
        assert self.keeper.stdin is not None
        self.keeper.stdin.close()
        assert self.keeper.stdout is not None
        self.keeper.stdout.close()


@contextlib.contextmanager
def family(
    mark: str, *children: Member, enter: Callable[[int], object] | None = None, **options: Any
) -> Iterator[Family]:
    """*enter* gets the keeper's pid before it has started anything."""
    root = Member("keeper", children=list(children), **options)
    started = Family(mark, root)
    try:
        if enter is not None:
            enter(started.keeper.pid)
        started.let()
        started.hear(_count(root))
        yield started
    finally:
        started.end()


def _count(member: Member) -> int:
    return 1 + sum(map(_count, member.children))
