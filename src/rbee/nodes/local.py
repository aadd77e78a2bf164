"""This machine as a node: each worker in a session and process group of its own, its output in a file."""

import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import anyio
import structlog

from rbee.core.environment import inherited, placed
from rbee.core.exits import UNKNOWN, Exit, completed, may_be_oom, with_oom_verdict
from rbee.core.launch import Footprint, Launch, ProcessIdentity, StoredWorker, kind_of
from rbee.core.own_spec import told_text
from rbee.nodes import cgroups, footprints, last_words, logs, marks, processes
from rbee.nodes.cgroups import WorkerGroups
from rbee.nodes.lanes import EXACT, FILES, MEASURES, SPAWNS
from rbee.nodes.log_room import LogRoom
from rbee.nodes.oom import Birth, OomWatch, limit_reached
from rbee.nodes.sweep import Sweeper

log = structlog.get_logger(__name__)


class KeptProcess(processes.WatchedProcess):
    """A keeper, ours or an earlier hive's; how its engine ended stands in the file that it leaves."""

    def __init__(
        self,
        identity: ProcessIdentity,
        handle: processes.Handle,
        around: "Surroundings",
        child: "subprocess.Popen[bytes] | None" = None,
    ) -> None:
        super().__init__(identity, handle, child, around.group)
        self._around = around

    def swept(self) -> None:
        """What is killed from now on is killed by us."""
        self._killed = True

    @property
    def incarnation(self) -> int:
        return self._around.incarnation

    async def wait(self) -> Exit:
        exit_ = await super().wait()
        around = self._around
        word = last_words.read(around.exit_file, around.incarnation)
        if word is not None:
            exit_ = completed(exit_, word)
        if self._killed or not may_be_oom(exit_):
            around.oom.look()
            return exit_
        limit = None if around.group is None else limit_reached(around.group)
        return with_oom_verdict(exit_, around.oom.explains(around.birth), limit)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What belongs to one keeper beside its process."""

    exit_file: Path
    incarnation: int
    oom: OomWatch
    birth: Birth
    group: Path | None


class LocalNode:
    """*directory* gets one folder a worker, with ``<incarnation>.log`` and ``<incarnation>.exit.json``.

    Logs are cut at *max_log_bytes*; those of the last *keep* incarnations of a worker are kept. Without *groups*
    workers get cgroups of their own where our own is delegated to us.
    """

    def __init__(
        self,
        directory: Path,
        environ: Mapping[str, str],
        max_log_bytes: int,
        keep: int,
        groups: WorkerGroups | None = None,
        oom: OomWatch | None = None,
    ) -> None:
        self._directory = directory
        self._environ = environ
        self._log_room = LogRoom(directory, max_log_bytes)
        self._keep = keep
        self._groups = WorkerGroups(cgroups.delegated()) if groups is None else groups
        self._oom = oom or OomWatch()
        self._sweeper = Sweeper(self._groups)
        self._kept: dict[str, KeptProcess] = {}
        self._begun: set[str] = set()
        # Read while there are descriptors to read it with.
        processes.boot_id()

    async def spawn(self, launch: Launch) -> KeptProcess:
        self._begun.add(launch.spec.worker_id)
        # In a thread: fork and exec of a new interpreter take milliseconds that the loop has better uses for. The
        # worker has no parent-death signal (it may outlive the hive), so the end of that thread means nothing to it.
        return await SPAWNS.run(self._spawn, launch)

    def _spawn(self, launch: Launch) -> KeptProcess:
        worker_id = launch.spec.worker_id
        folder = self._directory / worker_id
        folder.mkdir(parents=True, exist_ok=True)
        self._drop_old(folder)
        exit_file = self._exit_file(worker_id, launch.incarnation)
        # One of an earlier life with this number would be taken for its own.
        exit_file.unlink(missing_ok=True)
        with (folder / f"{launch.incarnation}.log").open("ab") as output:
            child = subprocess.Popen(
                command(launch, exit_file),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(launch, self._environ),
                cwd=folder,
                start_new_session=True,
            )
        with ExitStack() as undo:
            # Not to be held or told from others means not to be kept: nobody would see it end.
            undo.callback(_end, child)
            handle = processes.Handle(child.pid)
            undo.callback(handle.close)
            # At once: it starts its engine only after it has spoken with us, so all below it is born in the group.
            group = self._groups.join(worker_id, launch.incarnation, child.pid, launch.memory_limit_bytes)
            identity = processes.identify_child(child.pid)
            around = Surroundings(exit_file, launch.incarnation, self._oom, self._oom.begin(child.pid), group)
            undo.pop_all()
        return self._keep_hold(worker_id, KeptProcess(identity, handle, around, child))

    async def adopt(self, row: StoredWorker) -> KeptProcess | None:
        worker_id, incarnation = row.spec.worker_id, row.incarnation
        self._begun.add(worker_id)
        identity = row.identity or await self._sweeper.find_keeper(worker_id, incarnation)
        handle = None if identity is None else processes.hold(identity)
        if identity is None or handle is None:
            return None
        with ExitStack() as undo:
            undo.callback(handle.close)
            group = self._groups.adopt(worker_id, incarnation, identity.pid)
            birth = self._oom.begin(identity.pid)
            undo.pop_all()
        around = Surroundings(self._exit_file(worker_id, incarnation), incarnation, self._oom, birth, group)
        return self._keep_hold(worker_id, KeptProcess(identity, handle, around))

    def _keep_hold(self, worker_id: str, process: KeptProcess) -> KeptProcess:
        mark = marks.mark_of(worker_id, process.incarnation)
        replaced = self._kept.get(mark)
        if replaced is not None:
            replaced.close()
        self._kept[mark] = process
        return process

    async def find_keeper(self, worker_id: str, incarnation: int) -> ProcessIdentity | None:
        return await self._sweeper.find_keeper(worker_id, incarnation)

    async def last_word(self, worker_id: str, incarnation: int) -> Exit:
        path = self._exit_file(worker_id, incarnation)
        word = await FILES.run(last_words.read, path, incarnation)
        exit_ = UNKNOWN if word is None else completed(UNKNOWN, word)
        # Nobody was there to look at the counters.
        return with_oom_verdict(exit_, None) if may_be_oom(exit_) else exit_

    def _drop_old(self, folder: Path) -> None:
        by_age = logs.of(folder)
        for old in by_age[: max(0, len(by_age) - self._keep + 1)]:
            # With the log go the word that was left of its end, and what a killed keeper had begun of one.
            for left in folder.glob(f"{old.stem}.*"):
                left.unlink(missing_ok=True)

    def watch(self, pid: int) -> processes.WatchedProcess | None:
        return processes.watch(pid)

    async def sweep(self, worker_id: str, incarnation: int) -> int:
        mark = marks.mark_of(worker_id, incarnation)
        kept = self._kept.get(mark)
        if kept is None:
            return await self._sweeper.sweep(worker_id, incarnation)
        kept.swept()
        killed = await self._sweeper.sweep(worker_id, incarnation, kept.identity.pid)
        # Only now: a sweep that failed is tried again, and must know then who its keeper was.
        self._kept.pop(mark, None)
        return killed

    async def sweep_orphans(self) -> int:
        return await self._sweeper.sweep_orphans()

    async def measure(self, pids: Sequence[int]) -> Mapping[int, Footprint]:
        return await MEASURES.run(self._measure, pids)

    def _measure(self, pids: Sequence[int]) -> Mapping[int, Footprint]:
        # This is called all the time, which keeps the looks at the counters fresh.
        self._oom.look()
        return footprints.measure(pids)

    async def measure_exactly(self, pid: int) -> Footprint | None:
        return await EXACT.run(footprints.measure_exactly, pid)

    def port_is_free(self, host: str, port: int) -> bool:
        return processes.port_is_free(host, port)

    async def tail(self, worker_id: str, lines: int) -> Sequence[str]:
        return await FILES.run(self._tail, worker_id, lines)

    def _tail(self, worker_id: str, lines: int) -> Sequence[str]:
        return logs.tail(logs.newest(self._directory / worker_id), lines)

    def follow(self, worker_id: str, lines: int) -> AsyncIterator[str]:
        return logs.follow(self._directory / worker_id, lines)

    async def forget(self, worker_id: str) -> None:
        await FILES.run(shutil.rmtree, self._directory / worker_id, True)
        self._begun.discard(worker_id)

    async def forget_strangers(self, known: Collection[str]) -> int:
        folders = await FILES.run(logs.folders, self._directory)
        strangers = {folder.name for folder in folders}.difference(known)
        if not strangers:
            return 0
        living = {found.incarnation.rpartition(":")[0] for found in await self._sweeper.scan()}
        # One that was begun meanwhile has a folder before it has a process.
        return await FILES.run(self._remove, strangers - living - self._begun)

    def _remove(self, worker_ids: Collection[str]) -> int:
        folders = [self._directory / worker_id for worker_id in worker_ids]
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        return sum(not folder.exists() for folder in folders)

    async def cut_logs(self, interval: float) -> None:
        """Keep every log under its limit, and the disk from filling; ends only by cancellation."""
        while True:
            await anyio.sleep(interval)
            await FILES.run(self._cut_all)

    def _cut_all(self) -> None:
        self._log_room.keep()

    def _exit_file(self, worker_id: str, incarnation: int) -> Path:
        return self._directory / worker_id / f"{incarnation}.exit.json"


def _end(child: "subprocess.Popen[bytes]") -> None:
    child.kill()
    child.wait()


def command(launch: Launch, exit_file: Path) -> list[str]:
    """The keeper's command line. It holds no secret: those travel in the environment."""
    spec, placement = launch.spec, launch.placement
    # The worker's module, not a program found on PATH: it is always this very installation.
    argv = [sys.executable, "-m", "rbee.worker", "--worker-id", spec.worker_id, "--model-ref", spec.model_ref]
    options: dict[str, object] = {
        "--model": launch.model_path,
        "--backend": placement.backend,
        "--device": placement.devices[0] if placement.devices else 0,
        "--devices": ",".join(map(str, placement.devices)),
        "--tensor-split": ",".join(format(share, ".6g") for share in placement.split),
        "--host": launch.host,
        "--port": launch.port,
        "--port-last": launch.port_last,
        "--callback-url": launch.callback_url,
        # A name of the settings file means one of the kinds, which are all that the keeper knows.
        "--engine": kind_of(spec.engine, launch.engine),
        "--ctx-size": spec.ctx_size,
        "--slots": spec.slots,
        "--heartbeat-interval": launch.heartbeat_interval,
        "--orphan-timeout": launch.orphan_timeout,
        "--drain-timeout": launch.drain_timeout,
        "--end-timeout": launch.end_timeout,
        "--incarnation": launch.incarnation,
        "--prompt-cache": launch.prompt_cache_bytes,
        "--exit-file": exit_file,
        "--alias": spec.alias or "",
        "--engine-python": launch.engine.python,
    }
    for flag, value in options.items():
        if value != "":
            argv += [flag, str(value)]
    engine_args = (*spec.engine_args, *launch.added_engine_args)
    return [*argv, "--", *engine_args] if engine_args else argv


def environment(launch: Launch, environ: Mapping[str, str]) -> dict[str, str]:
    """A built environment: what programs need to run, and no secret but this worker's own token."""
    built = {**inherited(environ), **placed(launch.placement, launch.device_uuids, environ)}
    built["RBEE_WORKER_TOKEN"] = launch.token
    built["RBEE_WORKER_SPEC"] = told_text(launch.spec)
    built[marks.INCARNATION_VARIABLE] = marks.mark_of(launch.spec.worker_id, launch.incarnation)
    if launch.engine.command:
        built["RBEE_ENGINE_COMMAND"] = json.dumps(launch.engine.command)
        built["RBEE_ENGINE_HEALTH_PATH"] = launch.engine.health_path
    return built
