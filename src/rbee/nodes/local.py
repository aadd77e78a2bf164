"""This machine as a node: each worker in a session and process group of its own, its output in a file."""

import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import anyio.to_thread
import structlog

from rbee.core.environment import inherited
from rbee.core.exits import Exit, ExitReason
from rbee.core.launch import Launch, ProcessIdentity
from rbee.core.worker import WorkerSpec
from rbee.nodes import logs, processes

log = structlog.get_logger(__name__)


class LocalWorkerProcess(processes.WatchedProcess):
    """A keeper that this hive started; how its engine ended stands in the file that it leaves."""

    def __init__(
        self,
        identity: ProcessIdentity,
        handle: processes.Handle,
        child: "subprocess.Popen[bytes]",
        exit_file: Path,
    ) -> None:
        super().__init__(identity, handle, child)
        self._exit_file = exit_file

    async def wait(self) -> Exit:
        exit_ = await super().wait()
        return _with_message(exit_, self._exit_file)


class LocalNode:
    """*directory* gets one folder a worker, with ``<incarnation>.log`` and ``<incarnation>.exit.json``.

    Logs are cut at *max_log_bytes*; those of the last *keep* incarnations of a worker are kept.
    """

    def __init__(self, directory: Path, environ: Mapping[str, str], max_log_bytes: int, keep: int) -> None:
        self._directory = directory
        self._environ = environ
        self._max_log_bytes = max_log_bytes
        self._keep = keep

    async def spawn(self, launch: Launch) -> processes.WatchedProcess:
        # In a thread: fork and exec of a new interpreter take milliseconds that the loop has better uses for. The
        # worker has no parent-death signal (it may outlive the hive), so the end of that thread means nothing to it.
        return await anyio.to_thread.run_sync(self._spawn, launch)

    def _spawn(self, launch: Launch) -> processes.WatchedProcess:
        folder = self._directory / launch.spec.worker_id
        folder.mkdir(parents=True, exist_ok=True)
        self._drop_old(folder)
        exit_file = folder / f"{launch.incarnation}.exit.json"
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
        try:
            handle = processes.Handle(child.pid)
        except OSError:
            # Not to be watched means not to be kept: nobody would see it end.
            child.kill()
            child.wait()
            raise
        # One that has ended already is a zombie until we reap it, so its pid is still its own.
        identity = ProcessIdentity(child.pid, processes.start_time(child.pid) or 0, processes.boot_id())
        return LocalWorkerProcess(identity, handle, child, exit_file)

    def _drop_old(self, folder: Path) -> None:
        by_age = sorted(folder.glob("*.log"), key=_incarnation_of)
        for old in by_age[: max(0, len(by_age) - self._keep + 1)]:
            old.unlink(missing_ok=True)
            old.with_suffix(".exit.json").unlink(missing_ok=True)

    def watch(self, pid: int) -> processes.WatchedProcess | None:
        return processes.watch(pid)

    async def end_leftover(self, identity: ProcessIdentity, grace: float) -> bool:
        return await processes.end_identified(identity, grace)

    async def sweep(self, worker_id: str, incarnation: int) -> int:
        return await anyio.to_thread.run_sync(processes.kill_carriers, f"{worker_id}:{incarnation}")

    def port_is_free(self, host: str, port: int) -> bool:
        return processes.port_is_free(host, port)

    async def tail(self, worker_id: str, lines: int) -> Sequence[str]:
        return await anyio.to_thread.run_sync(logs.tail, self._log_of(worker_id), lines)

    def follow(self, worker_id: str, lines: int) -> AsyncIterator[str]:
        return logs.follow(lambda: self._log_of(worker_id), lines)

    async def forget(self, worker_id: str) -> None:
        await anyio.to_thread.run_sync(shutil.rmtree, self._directory / worker_id, True)

    async def cut_logs(self, interval: float) -> None:
        """Keep every log under its limit; ends only by cancellation."""
        while True:
            await anyio.sleep(interval)
            await anyio.to_thread.run_sync(self._cut_all)

    def _cut_all(self) -> None:
        for path in self._directory.glob("*/*.log"):
            try:
                logs.cut(path, self._max_log_bytes)
            except OSError as error:
                log.warning("log_not_cut", path=str(path), reason=str(error))

    def _log_of(self, worker_id: str) -> Path:
        folder = self._directory / worker_id
        return max(folder.glob("*.log"), key=_incarnation_of, default=folder / "0.log")


def _incarnation_of(path: Path) -> int:
    return int(path.stem) if path.stem.isdigit() else 0


def command(launch: Launch, exit_file: Path) -> list[str]:
    """The keeper's command line. It holds no secret: those travel in the environment."""
    spec = launch.spec
    # The worker's module, not a program found on PATH: it is always this very installation.
    argv = [sys.executable, "-m", "rbee.worker", "--worker-id", spec.worker_id, "--model-ref", spec.model_ref]
    options: dict[str, object] = {
        "--model": launch.model_path,
        "--backend": spec.backend,
        "--device": spec.device,
        "--host": launch.host,
        "--port": launch.port,
        "--port-last": launch.port_last,
        "--callback-url": launch.callback_url,
        # A name of the settings file is a command; the keeper knows kinds, not names.
        "--engine": "command" if launch.engine.command else spec.engine,
        "--ctx-size": spec.ctx_size,
        "--slots": spec.slots,
        "--heartbeat-interval": launch.heartbeat_interval,
        "--orphan-timeout": launch.orphan_timeout,
        "--drain-timeout": launch.drain_timeout,
        "--incarnation": launch.incarnation,
        "--prompt-cache": launch.prompt_cache_bytes,
        "--exit-file": exit_file,
        "--alias": spec.alias or "",
        "--engine-python": launch.engine.python,
    }
    for flag, value in options.items():
        if value != "":
            argv += [flag, str(value)]
    return [*argv, "--", *spec.engine_args] if spec.engine_args else argv


def environment(launch: Launch, environ: Mapping[str, str]) -> dict[str, str]:
    """A built environment: what programs need to run, and no secret but this worker's own token."""
    built = inherited(environ)
    built["RBEE_WORKER_TOKEN"] = launch.token
    built["RBEE_WORKER_SPEC"] = json.dumps(told(launch.spec))
    built[processes.INCARNATION_VARIABLE] = f"{launch.spec.worker_id}:{launch.incarnation}"
    if launch.engine.command:
        built["RBEE_ENGINE_COMMAND"] = json.dumps(launch.engine.command)
        built["RBEE_ENGINE_HEALTH_PATH"] = launch.engine.health_path
    return built


def told(spec: WorkerSpec) -> dict[str, object]:
    """What a worker cannot know of itself, and tells a hive that has lost its own record of it."""
    return {
        "engine": spec.engine,
        "engine_args": spec.engine_args,
        "ctx_size": spec.ctx_size,
        "restart": spec.restart,
        "max_memory_bytes": spec.max_memory_bytes,
        "idle_timeout": spec.idle_timeout,
    }


def _with_message(exit_: Exit, exit_file: Path) -> Exit:
    """*exit_* with what the keeper left about it, if it could leave anything (a killed one cannot)."""
    try:
        left = json.loads(exit_file.read_bytes())
        message = str(left.get("message") or "")
    except (OSError, ValueError, AttributeError):
        return exit_
    reason = exit_.reason
    if left.get("reason") == "stopped":
        reason = ExitReason.STOPPED
    return Exit(reason, exit_.code, exit_.signal_number, message)
