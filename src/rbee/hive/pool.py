"""Admits workers, alone and under one lock; starts and stops them; names what would not stop."""

import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus

from rbee.core import auth, events, model_ref
from rbee.core.admission import Verdict
from rbee.core.claims import Claim
from rbee.core.errors import AliasInUse, DoesNotFit, InvalidField, ShuttingDown
from rbee.core.exits import ExitReason
from rbee.core.launch import Launch, StoredWorker
from rbee.core.liveness import seen
from rbee.core.restart import key_of
from rbee.core.routing import RouteTable
from rbee.core.worker import ALIVE, Worker, WorkerSpec, WorkerState
from rbee.hive.admissions import AdmissionOptions, Admissions, Sources
from rbee.hive.circuits import Circuits
from rbee.hive.closing import Closing
from rbee.hive.journal import Journal, Transition
from rbee.hive.launching import Launching
from rbee.hive.options import Adapters, PoolOptions
from rbee.hive.registry import Record, Registry
from rbee.hive.restarts import Restarts
from rbee.hive.supervisor import Patience, Supervisor, Surroundings

ROW_RETRY_DELAY: Final = 5.0
"""Seconds until a row that could not be removed is tried again."""
log = structlog.get_logger(__name__)

_REMEMBERED_ENDS: Final = 10_000
"""Ended workers whose ids are remembered: a process that was told to end must not come back by announcing itself."""


Admit = Callable[[Worker, int, StoredWorker | None, Claim | None], Awaitable[Record]]
"""Registers a worker, with its port and its claim, and starts its supervisor."""


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
        self._is_shut = False
        self._adopted = anyio.Event()
        self._ended_ids: dict[str, None] = {}
        self.illegal_events = 0
        self.circuits = Circuits(options.restart, utc_now, lambda: random.uniform(-1.0, 1.0))
        self.journal = Journal()
        self.admissions = Admissions(
            AdmissionOptions(options.limits, options.prompt_cache_bytes, options.engines, options.processor),
            Sources(adapters.machine, adapters.sizer, adapters.peaks, adapters.library, adapters.node),
            registry,
            routes,
        )
        self._launching = Launching(options, adapters, registry, routes, policy, self.admissions)
        self.engine_key = self._launching.engine_key
        self._patience = Patience(options.drain_timeout, options.term_grace, options.stale_after)
        self._closing = Closing(self._supervisors, self._patience, leaves_workers=options.leaves_workers)
        self._around = Surroundings(
            node=adapters.node,
            store=adapters.store,
            routes=routes,
            journal=self.journal,
            patience=self._patience,
            wall_clock=utc_now,
            launch=self._launch,
            engine_key=self._launching.engine_key,
            served=self._launching.served,
            folds=self._launching.folds,
            answers=self._launching.answers,
            restarts=Restarts(self.circuits, self._adopted, self._readmit),
            on_illegal_event=self._count_illegal_event,
            on_gone=self._gone,
            on_row_left=self._row_left,
        )
        self.circuits.on_change = self._let_kind_ask_again
        self.journal.subscribe(self._note_transition)
        routes.subscribe_releases(self._load_changed)

    @property
    def worker_host(self) -> str:
        """Where this hive's own workers serve."""
        return self._options.worker_host

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Hold the supervisors' tasks until cancelled."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self.admissions.peaks.run)
            task_status.started()
            await anyio.sleep_forever()

    # What callers ask for.

    async def spawn(self, spec: WorkerSpec) -> Record:
        """Start a worker; returns once it is registered, long before it is ready.

        *spec* has no id yet: it gets one. Raises InvalidField, DoesNotFit, ModelNotFound, NotAModelFile, AliasInUse,
        CircuitOpen, NoPortLeft or ShuttingDown; nothing was started then.
        """
        await self._check_fields(spec)
        await self._adopted.wait()
        await self.admissions.check_floor()
        known = await self.admissions.learn(spec)
        async with self.admission() as admit:
            self.check_alias(spec)
            worker = Worker(replace(spec, worker_id=self._new_id()), since=anyio.current_time())
            self.circuits.check(worker.spec)
            verdict = await self.admissions.decide(worker.spec, known)
            if not verdict.fits:
                raise self.admissions.refused(verdict)
            # Once more: its kind may have failed meanwhile, or be having its one try.
            self.circuits.check(worker.spec)
            port = self._launching.free_port()
            self.circuits.begin(worker.spec)
            return await admit(worker, port, None, verdict.claim)

    async def consider(self, spec: WorkerSpec, download_bytes: int = 0) -> Verdict:
        """What ``spawn`` would decide; nothing is started. *download_bytes*: of a model that is not here yet.

        Raises InvalidField, ModelNotFound, NotAModelFile or AliasInUse.
        """
        await self._check_fields(spec)
        # Before, what the workers of the hive before hold counts twice.
        await self._adopted.wait()
        known = await self.admissions.learn(spec, download_bytes)
        self.check_alias(spec)
        return await self.admissions.decide(spec, known, download_bytes)

    async def _check_fields(self, spec: WorkerSpec) -> None:
        self.check_engine(spec)
        self._check_alias_form(spec)
        await self.admissions.choose(spec)

    @asynccontextmanager
    async def admission(self) -> AsyncIterator[Admit]:
        """One at a time: what is checked in here is still so when the worker is registered. Raises ShuttingDown."""
        async with self._admitting:
            if self._is_shut:
                raise ShuttingDown("The hive is shutting down and takes no worker any more.")
            yield self._admit

    def take(self, worker_id: str, event: events.Event) -> None:
        """Let a registered worker take what it, or somebody, has said. Raises IllegalTransition."""
        self._supervisors[worker_id].take(event)

    def has_ended(self, worker_id: str) -> bool:
        """Whether this hive has had such a worker of its own, and ended it."""
        return worker_id in self._ended_ids

    async def delete(self, worker_id: str, *, force: bool = False) -> Record:
        """Begin to end a worker; it stays ended, whatever becomes of this hive. Raises WorkerNotFound."""
        record, supervisor = self._registry.get(worker_id), self._supervisors[worker_id]
        supervisor.take(events.EndRequested(force=force))
        await supervisor.save()
        return record

    async def restart(self, worker_id: str) -> Record:
        """End a worker if it runs, and start it anew. Raises WorkerNotFound, IllegalTransition."""
        record, supervisor = self._registry.get(worker_id), self._supervisors[worker_id]
        supervisor.take(events.RestartRequested())
        # Somebody has decided that it may: the one try of an open circuit.
        self.circuits.begin(record.worker.spec)
        await supervisor.save()
        return record

    def reset_circuit(self, key: str) -> None:
        """Close a circuit, forget its failures and let those try now that wait for it. Raises CircuitNotFound."""
        self.circuits.reset(key)
        self._let_kind_ask_again(key)

    def _let_kind_ask_again(self, key: str) -> None:
        """What the circuit says has changed, so nobody of its kind shall wait out a delay that means nothing now."""
        for supervisor in self._supervisors.values():
            if not supervisor.worker.spec.external and key_of(supervisor.worker.spec) == key:
                supervisor.ask_now()

    def end(self, worker_id: str, event: events.Event) -> None:
        """Let the monitor's verdict take its course."""
        supervisor = self._supervisors.get(worker_id)
        if supervisor is not None:
            supervisor.fire(event)

    def went_stale(self, worker_id: str) -> None:
        log.warning(
            f"Worker is stale (no heartbeat in {self._options.stale_after:g}s)",  # noqa: G004 - the original's words
            worker_id=worker_id,
        )
        self.end(worker_id, events.WentStale(self._options.stale_after))

    async def adopt(self, rows: Sequence[StoredWorker]) -> None:
        """Register the workers of an earlier hive; ``wait_adopted`` tells when it is known what lives of them."""
        for row in rows:
            worker = Worker(
                row.spec,
                incarnation=row.incarnation,
                since=anyio.current_time(),
                message="Started by an earlier hive; it is being looked for.",
                restart_count=row.restart_count,
            )
            port = urlsplit(row.url).port if row.url else None
            await self._admit(worker, port or 0, row, row.claim)

    async def wait_adopted(self) -> None:
        """Return once every stored worker is taken over or known to be gone, then let spawns and restarts go on."""
        for supervisor in list(self._supervisors.values()):
            if not supervisor.worker.spec.external:
                await supervisor.judged.wait()
        await self._claim_what_runs()
        await self._clear_away()
        self._adopted.set()

    async def _claim_what_runs(self) -> None:
        """A row of an older version says nothing of what its worker was granted."""
        for record in list(self._registry):
            if record.claim is None and record.worker.state in ALIVE and not record.worker.spec.external:
                record.grant(await self.admissions.claim_as_placed(record.worker.spec, record.placement))

    async def _clear_away(self) -> None:
        """What earlier hives left that belongs to nobody: processes without a keeper, folders without a worker."""
        node = self._adapters.node
        try:
            orphans = await node.sweep_orphans()
            strangers = await node.forget_strangers({record.worker_id for record in self._registry})
        except OSError as error:
            log.error("leftovers_not_cleared", reason=str(error))  # noqa: TRY400
            return
        if orphans or strangers:
            log.warning("leftovers_cleared", processes=orphans, workers=strangers)

    async def stop(self, budget: float) -> list[str]:
        """End every worker within *budget* seconds; returns the ids of those that would not."""
        await self._shut()
        return await self._closing.stop(budget)

    async def leave(self, budget: float) -> list[str]:
        """Let go of every worker within *budget* seconds; returns the ids of those that shall be gone, and are not."""
        await self._shut()
        return await self._closing.leave(budget)

    def force_stop(self) -> None:
        """The second signal: no more waiting for anybody."""
        self._closing.hurry()

    # How it is done.

    async def _shut(self) -> None:
        self._is_shut = True
        async with self._admitting:
            pass  # Who was let in before is registered by now.

    async def wait_gone(self, worker_id: str) -> None:
        supervisor = self._supervisors.get(worker_id)
        if supervisor is not None:
            await supervisor.forgotten.wait()

    async def _admit(self, worker: Worker, port: int, stored: StoredWorker | None, claim: Claim | None) -> Record:
        """*stored*: one whose process an earlier hive has started."""
        assert self._tasks is not None, "the pool must run before it is used"
        vital = seen(anyio.current_time(), self._options.stale_after)
        started_at = datetime.fromisoformat(stored.started_at) if stored and stored.started_at else utc_now()
        record = Record(worker, vital, started_at=started_at, port=port, claim=claim)
        self._registry.add(record)
        supervisor = self._supervisors[record.worker_id] = Supervisor(record, self._around, stored)
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
            if self._registry.find(worker_id) is supervisor.record:
                # It was left: a beat gets 404 now, and the announcement after it the word that this hive is going.
                self._registry.remove(worker_id)
            supervisor.forgotten.set()
        if self._registry.departed.get(worker_id) is supervisor.record:
            await self.admissions.wait_returned(supervisor.record)
            del self._registry.departed[worker_id]
            self._let_refused_ask_again()

    def _let_refused_ask_again(self) -> None:
        for supervisor in self._supervisors.values():
            supervisor.ask_if_refused()

    async def _readmit(self, worker: Worker) -> None:
        """Let a worker be started again, its claim being that of now. Raises DoesNotFit, or what keeps it from asking.

        Others that did not fit either do not stand in its way: each would wait for the memory of the other.
        """
        record = self._registry.get(worker.spec.worker_id)
        await self.admissions.wait_returned(record)
        # Not under the lock: a disk that hangs shall hold up this worker alone, and not the end of the hive.
        known = await self.admissions.learn(worker.spec)
        async with self.admission():
            if record.worker.incarnation != worker.incarnation:
                # That life has, or asks for, a claim of its own.
                raise DoesNotFit("it was started again meanwhile")
            verdict = await self.admissions.decide(worker.spec, known, is_restart=True)
            if not verdict.fits:
                if not record.is_refused:
                    log.warning("restart_refused", worker_id=record.worker_id, verdict=verdict.details())
                record.is_refused = True
                raise DoesNotFit(verdict.message)
            record.grant(verdict.claim)

    async def _launch(self, record: Record) -> Launch:
        if record.worker.incarnation > 1:
            await self._readmit(record.worker)
        return await self._launching.launch(record)

    async def _give_up_claim(self, supervisor: Supervisor) -> None:
        """Of a worker that has failed, once nothing is left of it and its memory is seen free."""
        await supervisor.wait_swept()
        await self.admissions.wait_returned(supervisor.record)
        if supervisor.worker.state is WorkerState.FAILED:
            supervisor.record.grant(None)
            self._let_refused_ask_again()

    def check_engine(self, spec: WorkerSpec) -> None:
        if spec.engine in ("llama-cpp", "synthetic"):
            return
        options = self._options.engines.get(spec.engine)
        if options is None or not (options.command or options.python):
            raise InvalidField(
                f"There is no engine '{spec.engine}'. Use llama-cpp or synthetic, or give it a command or the python "
                f"of another xllamacpp in the settings file under [engine.{spec.engine}].",
                field="engine",
            )

    def _check_alias_form(self, spec: WorkerSpec) -> None:
        alias = spec.alias
        if alias and (model_ref.looks_like_reference(alias) or alias.startswith("w-") or alias in self._registry):
            raise InvalidField(f"The alias '{alias}' looks like a worker id or a model reference.", field="alias")

    def check_alias(self, spec: WorkerSpec) -> None:
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

    def _new_id(self) -> str:
        while (worker_id := f"w-{secrets.token_hex(4)}") in self._registry:
            pass
        return worker_id

    def _load_changed(self, worker_id: str) -> None:
        supervisor = self._supervisors.get(worker_id)
        if supervisor is not None:
            supervisor.load_changed()

    def _count_illegal_event(self) -> None:
        self.illegal_events += 1

    def _gone(self, worker_id: str) -> None:
        record = self._registry.get(worker_id)
        worker = record.worker
        self._registry.remove(worker_id)
        if not worker.spec.external:
            self._registry.departed[worker_id] = record
            self.circuits.forget_worker(worker.spec)
            self._ended_ids[worker_id] = None
            if len(self._ended_ids) > _REMEMBERED_ENDS:
                del self._ended_ids[next(iter(self._ended_ids))]

    def _row_left(self, worker_id: str) -> None:
        assert self._tasks is not None, "the pool runs as long as its supervisors"
        self._tasks.start_soon(self._forget_at_last, worker_id)

    async def _forget_at_last(self, worker_id: str) -> None:
        """A row that stays would bring its worker back to life in the next hive."""
        while True:
            await anyio.sleep(ROW_RETRY_DELAY)
            try:
                await self._adapters.store.forget(worker_id)
            except OSError as error:
                log.error("store_failed", worker_id=worker_id, reason=str(error))  # noqa: TRY400
            else:
                return

    def _note_transition(self, entry: Transition) -> None:
        has_failed = entry.after is WorkerState.FAILED and (
            entry.before is not WorkerState.FAILED or entry.event == events.CircuitOpened.__name__
        )
        if entry.after is entry.before and not has_failed:
            return
        record = self._registry.get(entry.worker_id)
        if entry.exit is not None and entry.exit.reason is ExitReason.OVER_MEMORY:
            self.admissions.peaks.forget(record)
        if entry.after is WorkerState.READY:
            self.circuits.became_ready(record.worker.spec)
        elif has_failed and entry.worker_id in self._supervisors and not record.worker.spec.external:
            # It is admitted again before it gets a process: nobody shall wait for what it does not use.
            assert self._tasks is not None, "the pool runs as long as its supervisors"
            self._tasks.start_soon(self._give_up_claim, self._supervisors[entry.worker_id])
