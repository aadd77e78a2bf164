"""Admits workers, alone and under one lock; starts and stops them; names what would not stop."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus

from rbee.core import auth, events, model_ref
from rbee.core.errors import (
    AliasInUse,
    Forbidden,
    InvalidField,
    NoPortLeft,
    OlderIncarnation,
    ShuttingDown,
    WorkerIdInUse,
)
from rbee.core.exits import Exit
from rbee.core.launch import EngineOptions, Launch, StoredWorker, first_free
from rbee.core.liveness import seen
from rbee.core.routing import RouteTable
from rbee.core.worker import Worker, WorkerSpec, WorkerState
from rbee.hive.announcements import Announcement, as_event, check_own_url, resolve_external_url
from rbee.hive.heartbeats import check_incarnation
from rbee.hive.journal import Journal
from rbee.hive.ports import Library, Node, Store
from rbee.hive.registry import Record, Registry
from rbee.hive.supervisor import Patience, Supervisor, Surroundings

log = structlog.get_logger(__name__)

_NO_RESTARTS: Final = "Not restarted: restart policies are not built yet. Delete it and spawn it again."


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """The settings that the pool needs. Times in seconds, sizes in bytes."""

    callback_url: str
    ports: range
    worker_host: str
    heartbeat_interval: float
    stale_after: float
    drain_timeout: float
    term_grace: float
    orphan_timeout: float
    prompt_cache_bytes: int
    allow_external: bool
    external_hosts: tuple[str, ...]
    front_port: int
    engines: dict[str, EngineOptions]


@dataclass(frozen=True, slots=True)
class Adapters:
    """The outside world, as daemon.py or a test builds it."""

    node: Node
    store: Store
    library: Library


def utc_now() -> datetime:
    return datetime.now(UTC)


class Pool:
    """All workers of this hive. ``run`` must run while any of its other methods is called."""

    def __init__(
        self, options: PoolOptions, adapters: Adapters, registry: Registry, routes: RouteTable, policy: auth.AuthPolicy
    ) -> None:
        self._options = options
        self._adapters = adapters
        self._registry = registry
        self._routes = routes
        self._policy = policy
        self._supervisors: dict[str, Supervisor] = {}
        self._admitting = anyio.Lock()
        self._tasks: TaskGroup | None = None
        self._closing = False
        self.illegal_events = 0
        self.journal = Journal()
        self._patience = Patience(options.drain_timeout, options.term_grace, options.stale_after)
        self._around = Surroundings(
            node=adapters.node,
            store=adapters.store,
            routes=routes,
            journal=self.journal,
            patience=self._patience,
            wall_clock=utc_now,
            launch=self._launch,
            engine_key=self.engine_key,
            decide_restart=_decide_restart,
            on_illegal_event=self._count_illegal_event,
            on_gone=registry.remove,
        )
        routes.subscribe(self._load_changed)

    @property
    def worker_host(self) -> str:
        """Where this hive's own workers serve."""
        return self._options.worker_host

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Hold the supervisors' tasks until cancelled."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            task_status.started()
            await anyio.sleep_forever()

    # What callers ask for.

    async def spawn(self, spec: WorkerSpec) -> Record:
        """Start a worker; returns once it is registered, long before it is ready.

        *spec* has no id yet: it gets one. Raises ModelNotFound, NotAModelFile, AliasInUse, NoPortLeft, InvalidField
        or ShuttingDown; nothing was started then.
        """
        self._check_engine(spec)
        self._check_alias_form(spec)
        await self._adapters.library.locate(model_ref.parse(spec.model_ref))
        async with self._admitting:
            if self._closing:
                raise ShuttingDown("The hive is shutting down and starts no worker any more.")
            self._check_alias(spec)
            worker = Worker(replace(spec, worker_id=self._new_id()), since=anyio.current_time())
            return await self._admit(worker, self._free_port())

    def delete(self, worker_id: str, *, force: bool = False) -> Record:
        """Begin to end a worker. Raises WorkerNotFound."""
        record = self._registry.get(worker_id)
        self._supervisors[worker_id].take(events.EndRequested(force=force))
        return record

    def restart(self, worker_id: str) -> Record:
        """End a worker if it runs, and start it anew. Raises WorkerNotFound, IllegalTransition."""
        record = self._registry.get(worker_id)
        self._supervisors[worker_id].take(events.RestartRequested())
        return record

    def went_stale(self, worker_id: str) -> None:
        log.warning(
            f"Worker is stale (no heartbeat in {self._options.stale_after:g}s)",  # noqa: G004 - the original's words
            worker_id=worker_id,
        )
        self._supervisors[worker_id].fire(events.WentStale(self._options.stale_after))

    async def announce(self, principal: auth.Principal, said: Announcement) -> Record:
        """A worker calls back: loading, ready or failed.

        Raises Unauthorized, Forbidden, OlderIncarnation, IllegalTransition, InvalidField; nothing changed then.
        """
        record = self._registry.find(said.worker_id)
        is_external = record is None or record.worker.spec.external
        auth.require_voice_of(principal, said.worker_id, external=is_external)
        if is_external:
            return await self._announce_external(principal, said)
        assert record is not None, "one that is not external is registered"
        check_own_url(said.url, self.worker_host)
        check_incarnation(record, said.incarnation)
        if principal.role is auth.Role.WORKER:
            check_incarnation(record, principal.incarnation)
        self._supervisors[said.worker_id].take(as_event(said))
        return record

    def engine_key(self, worker: Worker) -> str:
        """The key that this incarnation's own server demands."""
        incarnation = 0 if worker.spec.external else worker.incarnation
        return auth.engine_key(self._policy.worker_secret, worker.spec.worker_id, incarnation)

    async def end_leftovers(self, rows: Sequence[StoredWorker]) -> None:
        """End the processes of workers that an earlier hive left, and forget their rows."""

        async def end(row: StoredWorker) -> None:
            worker_id = row.spec.worker_id
            if row.identity is not None:
                ended = await self._adapters.node.end_leftover(row.identity, self._options.term_grace)
                log.info("leftover_worker_ended", worker_id=worker_id, pid=row.identity.pid, was_alive=ended)
            await self._adapters.node.sweep(worker_id, row.incarnation)
            await self._adapters.store.forget(worker_id)
            await self._adapters.node.forget(worker_id)

        async with anyio.create_task_group() as tasks:
            for row in rows:
                tasks.start_soon(end, row)

    async def stop(self, budget: float) -> list[str]:
        """End every worker within *budget* seconds; returns the ids of those that would not.

        Two thirds of the time are for requests in flight, most of the rest for a clean end; what is there after that
        tenths is killed.
        """
        async with self._admitting:
            self._closing = True
        self._patience.drain_timeout = min(self._patience.drain_timeout, budget * 2 / 3)
        self._patience.term_grace = min(self._patience.term_grace, budget * 7 / 30)
        self._end_all(force=False)
        for supervisor in self._supervisors.values():
            supervisor.hurry()
        with anyio.move_on_after(budget * 0.95):
            await self._wait_all_gone()
        self._end_all(force=True)
        with anyio.move_on_after(budget * 0.05):
            await self._wait_all_gone()
        left = list(self._supervisors)
        for worker_id in left:
            log.error("worker_would_not_stop", worker_id=worker_id, message=self._supervisors[worker_id].worker.message)
        return left

    def force_stop(self) -> None:
        """The second signal: no more waiting for anybody."""
        self._end_all(force=True)

    # How it is done.

    def _end_all(self, *, force: bool) -> None:
        for supervisor in list(self._supervisors.values()):
            if supervisor.worker.state is not WorkerState.GONE:
                supervisor.take(events.EndRequested(force=force))

    async def _wait_all_gone(self) -> None:
        while self._supervisors:
            await self.wait_gone(next(iter(self._supervisors)))

    async def wait_gone(self, worker_id: str) -> None:
        supervisor = self._supervisors.get(worker_id)
        if supervisor is not None:
            await supervisor.forgotten.wait()

    async def _admit(self, worker: Worker, port: int) -> Record:
        assert self._tasks is not None, "the pool must run before it is used"
        vital = seen(anyio.current_time(), self._options.stale_after)
        record = Record(worker, vital, started_at=utc_now(), port=port)
        self._registry.add(record)
        supervisor = self._supervisors[record.worker_id] = Supervisor(record, self._around)
        await self._tasks.start(self._supervise, supervisor)
        return record

    async def _supervise(
        self, supervisor: Supervisor, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        worker_id = supervisor.record.worker_id
        try:
            await supervisor.run(task_status=task_status)
        finally:
            self._supervisors.pop(worker_id, None)
            supervisor.forgotten.set()

    async def _launch(self, record: Record) -> Launch:
        spec, options = record.worker.spec, self._options
        return Launch(
            spec=spec,
            incarnation=record.worker.incarnation,
            port=record.port,
            port_last=options.ports.stop - 1,
            model_path=await self._adapters.library.locate(model_ref.parse(spec.model_ref)),
            token=auth.worker_token(self._policy.worker_secret, spec.worker_id, record.worker.incarnation),
            host=options.worker_host,
            callback_url=options.callback_url,
            heartbeat_interval=options.heartbeat_interval,
            orphan_timeout=options.orphan_timeout,
            # The hive has drained it already when it signals, so the keeper waits for little more than nothing.
            drain_timeout=options.term_grace / 2,
            prompt_cache_bytes=options.prompt_cache_bytes,
            engine=options.engines.get(spec.engine, EngineOptions()),
        )

    async def _announce_external(self, principal: auth.Principal, said: Announcement) -> Record:
        if principal.role is auth.Role.WORKER:
            raise OlderIncarnation(f"Worker '{said.worker_id}' has been ended; this process is no longer wanted.")
        url = await resolve_external_url(said.url, self._options.external_hosts, self._options.front_port)
        said = replace(said, url=url)
        # Asked again: it may have been removed while its host was resolved.
        record = self._registry.find(said.worker_id)
        if record is not None and said.pid == record.worker.pid:
            self._supervisors[said.worker_id].take(as_event(said))
            return record
        if record is not None and said.state == "failed":
            raise OlderIncarnation(f"Worker '{said.worker_id}' is process {record.worker.pid} by now.")
        if record is not None:
            # It was ended and started again under the same id, before its deadline.
            self._supervisors[said.worker_id].take(events.EndRequested(force=True))
        return await self._register_external(said)

    async def _register_external(self, said: Announcement) -> Record:
        if not self._options.allow_external:
            raise Forbidden("Workers started by hand are not accepted here; set workers.allow_external = true.")
        if said.state == "failed":
            raise InvalidField("A worker that failed cannot be registered.", field="state")
        model_ref.parse(said.model_ref)
        spec = said.spec()
        async with self._admitting:
            self._check_id(spec.worker_id)
            # One that was just removed is still being forgotten; its id is free after that.
            await self.wait_gone(spec.worker_id)
            if self._closing:
                raise ShuttingDown("The hive is shutting down and registers no worker any more.")
            self._check_alias(spec)
            state = WorkerState.LOADING if said.state == "loading" else WorkerState.READY
            worker = Worker(
                spec,
                state=state,
                incarnation=0,
                since=anyio.current_time(),
                message="Loading its model." if said.state == "loading" else "Ready.",
                pid=said.pid,
                engine_pid=said.engine_pid,
                url=said.url,
                slots=said.slots_total,
            )
            return await self._admit(worker, 0)

    def _check_engine(self, spec: WorkerSpec) -> None:
        if spec.engine in ("llama-cpp", "synthetic"):
            return
        options = self._options.engines.get(spec.engine)
        if options is None or not options.command:
            raise InvalidField(
                f"There is no engine '{spec.engine}'. Use llama-cpp or synthetic, or give it a command in the settings "
                f"file under [engine.{spec.engine}].",
                field="engine",
            )

    def _check_alias_form(self, spec: WorkerSpec) -> None:
        alias = spec.alias
        if alias and (model_ref.looks_like_reference(alias) or alias.startswith("w-") or alias in self._registry):
            raise InvalidField(f"The alias '{alias}' looks like a worker id or a model reference.", field="alias")

    def _check_alias(self, spec: WorkerSpec) -> None:
        if spec.alias is None:
            return
        self._check_alias_form(spec)
        for record in self._registry:
            other = record.worker.spec
            if other.alias == spec.alias and other.model_ref != spec.model_ref:
                raise AliasInUse(
                    f"The alias '{spec.alias}' belongs to worker '{other.worker_id}', which runs {other.model_ref}. "
                    "Choose another alias, or stop that worker.",
                    worker_id=other.worker_id,
                )

    def _check_id(self, worker_id: str) -> None:
        if worker_id in self._registry or any(r.worker.spec.alias == worker_id for r in self._registry):
            raise WorkerIdInUse(f"The name '{worker_id}' is in use; choose another worker id.")

    def _new_id(self) -> str:
        while (worker_id := f"w-{secrets.token_hex(4)}") in self._registry:
            pass
        return worker_id

    def _free_port(self) -> int:
        ports = self._options.ports
        taken = {record.port for record in self._registry}
        taken |= {r.port for r in self._routes if r.port}
        while (port := first_free(ports, taken)) is not None:
            if self._adapters.node.port_is_free(self.worker_host, port):
                return port
            taken.add(port)
        raise NoPortLeft(
            f"No port is free in {ports.start}-{ports.stop - 1}; widen workers.port_range or stop a worker."
        )

    def _load_changed(self) -> None:
        for supervisor in self._supervisors.values():
            supervisor.load_changed()

    def _count_illegal_event(self) -> None:
        self.illegal_events += 1


def _decide_restart(_worker: Worker, _exit: Exit) -> events.RestartDecision:
    return events.GiveUp(_NO_RESTARTS)
