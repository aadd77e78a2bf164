"""A real hive with residents that serve all the time, everything that watches it, and what faults need."""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos import disks, invariants, machine
from tests.chaos.clients import Traffic
from tests.chaos.invariants import Judgement, View
from tests.chaos.story import Story
from tests.chaos.wall_clock import WallClock
from tests.gguf_files import Model
from tests.hives import Hive, wait_for

HEARTBEAT, STALE_AFTER, LOAD_TIMEOUT, HANG_TIMEOUT, OPEN_FOR, STABLE_AFTER = 0.5, 2.0, 2.0, 2.0, 1.0, 2.0
"""Seconds; everything that takes minutes by default, scaled to one thirtieth and less."""

SETTINGS = {
    "heartbeat.interval": f"{HEARTBEAT}s",
    "heartbeat.stale_after": f"{STALE_AFTER}s",
    "monitor.interval": "1s",
    "monitor.memory_interval": "0.5s",
    "monitor.health_timeout": "2s",
    "monitor.hang_timeout": f"{HANG_TIMEOUT}s",
    "lifecycle.load_timeout": f"{LOAD_TIMEOUT}s",
    "lifecycle.load_limit": "60s",
    "lifecycle.drain_timeout": "3s",
    "lifecycle.term_grace": "1s",
    "lifecycle.shutdown_timeout": "12s",
    "lifecycle.orphan_timeout": "60s",
    "lifecycle.leave_timeout": "120s",
    "restart.base_delay": "0.2s",
    "restart.max_delay": "0.5s",
    "restart.period": f"{STABLE_AFTER}s",
    "restart.open_for": f"{OPEN_FOR}s",
    "restart.stable_after": f"{STABLE_AFTER}s",
    "gateway.keepalive_after": "1s",
    "gateway.queue_timeout": "40s",
}
PORTS_A_STAGE = 120
RESIDENTS = 3
SETTLE_TIMEOUT = 60.0
"""Seconds; what does not hold after that is broken."""
GONE = {"state": "gone"}


_LIMITED = (
    "import os, resource, sys; most = int(sys.argv[1]);"
    "resource.setrlimit(resource.RLIMIT_NOFILE, (most, most)); os.execv(sys.argv[2], sys.argv[2:])"
)
"""Becomes the command that follows, with so many descriptors and no more."""


class Violated(AssertionError):
    """A fault had another outcome than the one that is promised."""


@dataclass
class LimitedHive(Hive):
    """A hive that is started with at most so many descriptors, where that is given."""

    descriptors: int | None = None

    def command(self) -> list[str]:
        command = super().command()
        if self.descriptors is None:
            return command
        return [sys.executable, "-c", _LIMITED, str(self.descriptors), *command]


@dataclass(frozen=True)
class Settled:
    seconds: float
    judgement: Judgement
    violations: list[str]


class Stage:
    """*folder* is empty and ours; *first_port* begins a range of PORTS_A_STAGE that nobody else uses."""

    def __init__(
        self,
        folder: Path,
        rng: random.Random,
        first_port: int,
        *,
        compiler: str | None = None,
        small_disk: bool = False,
    ) -> None:
        self.folder, self.rng = folder, rng
        self.ports = range(first_port, first_port + PORTS_A_STAGE)
        self.disk = folder / "disk"
        self.disk.mkdir()
        self.has_small_disk = small_disk and disks.mount_small(self.disk)
        self.models = folder / "models"
        self.models.mkdir()
        self.clock = WallClock(compiler, folder) if compiler else None
        config = folder / "rbee-hive.toml"
        config.write_text(_config(self.models))
        self.hive = LimitedHive(
            self.disk / "state",
            {**SETTINGS, "workers.port_range": f"{self.ports.start}-{self.ports.stop - 1}"},
            environ=self.clock.environ if self.clock else {},
            config=config,
        )
        self.gaps: list[tuple[float, float]] = []
        self.residents: dict[str, str] = {}
        self.injected_at = 0.0
        self._names = 0
        self._turn = 0
        self._abandoned = False

    def open(self) -> "Stage":
        self.hive.start()
        self.story = Story(self.hive.host, self.hive.port).start()
        self.traffic = Traffic(self.hive.host, self.hive.port, self.rng.getrandbits(32))
        self._first_size = (machine.descriptors(self.hive_pid), machine.threads(self.hive_pid))
        self.populate()
        return self

    def close(self) -> list[str]:
        """End the hive as an administrator would; what is left then is a violation."""
        self.traffic.pause()
        self.traffic.end()
        with self.hive_gap():
            code = self.hive.stop()
        left = machine.worker_processes(self.hive.state_dir, set(self.story.models))
        self.abandon()
        found = [f"after the end of the hive: {machine.described(pid)}" for pid in left]
        return found if code == 0 else [*found, f"the hive ended with exit code {code}"]

    def abandon(self) -> None:
        """Leave nothing of it behind, whatever has happened, and start nothing any more."""
        self._abandoned = True
        if self.hive.process is not None:
            self.hive.end()
        if hasattr(self, "traffic"):
            self.traffic.end()
            self.story.end()
            for pid in machine.worker_processes(self.hive.state_dir, set(self.story.models)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def remove(self) -> None:
        """After its end: its folder, and the file system in it."""
        if self.has_small_disk:
            disks.unmount(self.disk)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def hive_pid(self) -> int:
        assert self.hive.process is not None
        return self.hive.process.pid

    # Residents and guests.

    def populate(self) -> None:
        """New residents, where there are none."""
        for _ in range(RESIDENTS):
            model = f"synthetic:{self.new_name()}"
            self.residents[self.hive.spawn(model, engine_args=["--tokens-per-second", "250"])] = model
        for worker_id in self.residents:
            self.wait_serving(worker_id)
        self.traffic.resume(list(self.residents.values()))

    def new_name(self) -> str:
        self._names += 1
        return f"m{self._names}-{self.rng.getrandbits(32):08x}"

    def victim(self) -> dict[str, Any]:
        """The next resident in turn, so that none is hurt twice in a row."""
        self._turn += 1
        return self.hive.worker(list(self.residents)[self._turn % len(self.residents)])

    def odd_model(self, **habits: Any) -> str:
        """The reference of a model that the odd engine runs, with these habits."""
        path = self.models / f"{self.new_name()}.gguf"
        # The odd engine does not read it, but the hive does.
        Model().write(path)
        self.mend(f"file:{path}", **habits)
        return f"file:{path}"

    def mend(self, model_ref: str, **habits: Any) -> None:
        path = Path(model_ref.removeprefix("file:")).with_suffix(".json")
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(habits))
        fresh.replace(path)

    def spawn_odd(self, **habits: Any) -> tuple[str, str]:
        """A guest of the odd engine: its worker id and its model."""
        model = self.odd_model(**habits)
        return self.hive.spawn(model, engine="odd"), model

    def dismiss(self, worker_id: str, force: bool = False) -> None:
        """End a guest and wait until nothing is listed of it."""
        self.hive.call("DELETE", f"/v1/workers/{worker_id}{'?force=true' if force else ''}")
        self.hive.wait_state(worker_id, "gone")

    def dismiss_guests(self) -> None:
        guests = [w["worker_id"] for w in self.listed() if w["worker_id"] not in self.residents]
        for worker_id in guests:
            self.dismiss(worker_id, force=True)

    def listed(self) -> list[dict[str, Any]]:
        workers: list[dict[str, Any]] = self.hive.get("/v1/workers").json["workers"]
        return workers

    # Waiting.

    def injected(self) -> None:
        """The fault has happened now: from here on the time to recover is counted."""
        self.injected_at = time.monotonic()

    def wait_busy(self) -> None:
        """Until requests are under way, so that a fault finds some to lose; the fault counts from then on."""
        self.traffic.wait_flowing()
        self.injected()

    def wait_serving(self, worker_id: str) -> dict[str, Any]:
        return self.hive.wait_state(worker_id, "idle", "busy")

    def wait_replaced(self, old: dict[str, Any]) -> dict[str, Any]:
        def probe() -> dict[str, Any] | None:
            now = self.hive.worker(old["worker_id"])
            return now if now["state"] in ("idle", "busy") and now["incarnation"] > old["incarnation"] else None

        return wait_for(probe, f"{old['worker_id']} serves again after incarnation {old['incarnation']}")

    def wait_beat_after(self, worker: dict[str, Any], moment: float) -> None:
        """Until the hive has heard of that worker since *moment* of our monotonic clock."""

        def heard() -> bool:
            asked = time.monotonic()
            age = self.hive.worker(worker["worker_id"]).get("last_heartbeat_age_seconds", asked)
            return bool(asked - age > moment)

        wait_for(heard, f"{worker['worker_id']} beats again")

    def let_pass(self, seconds: float) -> None:
        """The fault lasts that long: nothing else than time decides when it is over."""
        time.sleep(seconds)

    # The hive itself.

    @contextlib.contextmanager
    def hive_gap(self) -> Iterator[None]:
        """While this holds, no hive runs, or one is ending: requests may be refused or cut."""
        begin = time.monotonic()
        self.gaps.append((begin, float("inf")))
        try:
            yield
        finally:
            self.gaps[-1] = (begin, time.monotonic())

    def kill_hive(self) -> None:
        self.hive.signal(signal.SIGKILL)
        assert self.hive.process is not None
        self.hive.process.wait(30)

    def start_hive(self, settings: dict[str, str] | None = None, descriptors: int | None = None) -> None:
        """The next hive on the same state directory and port; *settings* and *descriptors* hold for this one alone."""
        if self._abandoned:
            raise Violated("the run was broken off")
        usual = self.hive.settings
        self.story.new_hive()
        self.hive.settings, self.hive.descriptors = {**usual, **(settings or {})}, descriptors
        try:
            self.hive.start()
        finally:
            self.hive.settings, self.hive.descriptors = usual, None
        self._first_size = (machine.descriptors(self.hive_pid), machine.threads(self.hive_pid))

    def identities(self) -> dict[str, tuple[int, int, int]]:
        """What must not change when workers are kept: incarnation, keeper and engine of each resident."""
        found = {}
        for worker_id in self.residents:
            worker = self.hive.worker(worker_id)
            found[worker_id] = (worker.get("incarnation", 0), worker.get("pid", 0), worker.get("engine_pid", 0))
        return found

    def same_residents(self, before: dict[str, tuple[int, int, int]]) -> None:
        for worker_id in self.residents:
            self.wait_serving(worker_id)
        now = self.identities()
        if now != before:
            raise Violated(f"workers were not kept: (incarnation, pid, engine pid) {before} became {now}")

    # The verdict.

    def look(self) -> View:
        workers = {worker["worker_id"]: worker for worker in self.listed()}
        resources = self.hive.get("/v1/resources").json
        return View(
            hive_pid=self.hive_pid,
            runner_pid=os.getpid(),
            workers=workers,
            residents=tuple(self.residents),
            processes=machine.worker_processes(self.hive.state_dir, set(self.story.models) | set(workers)),
            listeners=machine.listeners(self.ports.start, self.ports.stop - 1),
            folders=machine.folders(self.hive.state_dir),
            rows=machine.rows(self.hive.state_dir),
            in_flight=self.hive.metric("rbee_hive_requests_in_flight"),
            queued=self.hive.metric("rbee_hive_queue_depth"),
            illegal_events=self.hive.metric("rbee_hive_illegal_events_total"),
            descriptors=machine.descriptors(self.hive_pid),
            threads=machine.threads(self.hive_pid),
            first_descriptors=self._first_size[0],
            first_threads=self._first_size[1],
            told_states=self.story.told_states(),
            claims={one["worker_id"]: one["claimed"]["ram_bytes"] for one in resources.get("workers", [])},
            reserved=resources.get("memory", {}).get("reserved_bytes", 0),
        )

    def settle(self) -> Settled:
        """Wait until everything holds again; what does not within SETTLE_TIMEOUT is a violation."""
        self.dismiss_guests()
        end = time.monotonic() + SETTLE_TIMEOUT
        while any(self.hive.worker(worker_id)["state"] not in ("idle", "busy") for worker_id in self.residents):
            if time.monotonic() > end:
                break
            time.sleep(0.02)
        seconds = time.monotonic() - self.injected_at
        self.traffic.pause()
        while (wrong := invariants.broken(self.look())) and time.monotonic() < end:
            seconds = time.monotonic() - self.injected_at
            time.sleep(0.05)
        judgement = invariants.judge_requests(self.traffic.take(), self.story, self.gaps)
        self.gaps.clear()
        wrong += invariants.judge_story(self.story)
        self.traffic.resume(list(self.residents.values()))
        return Settled(seconds, judgement, wrong)


def _config(models: Path) -> str:
    command = [sys.executable, str(Path(__file__).with_name("odd_engine.py")), "{port}", "{model}", "{names}"]
    return f'[models]\nallowed_roots = ["{models}"]\n[engine.odd]\ncommand = {json.dumps(command)}\n'


def free_ports(rng: random.Random, part: int = 0, parts: int = 1) -> int:
    """The first port of a range on which nobody listens now, below those that the kernel gives out by itself.

    Stages side by side, each with a *part* of its own, never get the same.
    """
    width = (32_000 - 10_000) // parts
    lowest = 10_000 + part * width
    while True:
        first = rng.randrange(lowest, lowest + width - PORTS_A_STAGE)
        if not machine.listeners(first, first + PORTS_A_STAGE):
            return first
