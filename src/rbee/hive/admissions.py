"""Asks the machine, the model's file and the registry for what the core needs to decide whether a worker fits."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import anyio
import structlog

from rbee.core import admission, backends, model_ref, repacking, sizing
from rbee.core.admission import Demand, Limits, Resource, Verdict
from rbee.core.backends import Choice
from rbee.core.claims import Claim, Holding, Need, Parts, Placement
from rbee.core.engine_args import LLAMA_CPP
from rbee.core.errors import ControlUnavailable, DoesNotFit, RequestError
from rbee.core.launch import EngineOptions, Footprint, kind_of
from rbee.core.model_header import ModelFacts
from rbee.core.resources import DeviceReading, EngineBuild, MachineReading
from rbee.core.routing import RouteTable
from rbee.core.worker import WorkerSpec, WorkerState
from rbee.hive.peaks import PeakBook
from rbee.hive.ports import Library, Machine, Node, Peaks, Sizer
from rbee.hive.registry import Record, Registry

log = structlog.get_logger(__name__)

MAX_READING_AGE: Final = 2.0
"""Seconds; no older reading of a device decides (DESIGN section 7)."""
RETURN_INTERVAL: Final = 0.25
RETURN_TIMEOUT: Final = 5.0
"""Seconds for the memory of an ended worker to be seen free again, looked for every RETURN_INTERVAL."""

_IN_MOTION: Final = (WorkerState.STARTING, WorkerState.LOADING, WorkerState.STOPPING)
"""States in which what a worker holds changes by gigabytes within a second."""
_SETTLED: Final = (WorkerState.READY, WorkerState.DRAINING)


@dataclass(frozen=True, slots=True)
class Survey:
    """The machine, and who has what of it."""

    machine: MachineReading
    holdings: tuple[Holding, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """What is learnt of a model before its worker is admitted: *build* of its engine, None where it cannot be asked."""

    facts: ModelFacts
    build: EngineBuild | None


@dataclass(frozen=True, slots=True)
class ModelToLoad:
    """``added_engine_args``: what its engine is told beside what was asked for."""

    path: str
    added_engine_args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AdmissionOptions:
    limits: Limits
    prompt_cache_bytes: int
    engines: Mapping[str, EngineOptions]
    processor: str


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the numbers come from."""

    machine: Machine
    sizer: Sizer
    peaks: Peaks
    library: Library
    node: Node


@dataclass(frozen=True, slots=True)
class _Stilled:
    """What a worker held that was measured since it is ready, and not sampled yet."""

    record: Record
    ready_since: float
    footprint: Footprint

    def is_of(self, record: Record) -> bool:
        worker = record.worker
        return record is self.record and worker.ready_since == self.ready_since and worker.state in _SETTLED


class Admissions:
    """Decides nothing and grants nothing: the pool does that, one at a time, with what it is told here."""

    def __init__(self, options: AdmissionOptions, sources: Sources, registry: Registry, routes: RouteTable) -> None:
        self.limits = options.limits
        self._options = options
        self._sources = sources
        self._registry = registry
        self._routes = routes
        self.peaks = PeakBook(sources.peaks, self._peak_key, self._facts, options.limits.max_worker_memory)
        self._last: MachineReading | None = None
        self._stilled: dict[str, _Stilled] = {}
        self._uuids: dict[tuple[str, int], str] = {}
        self.refusals: Counter[Resource] = Counter()

    # What is asked.

    async def choose(self, spec: WorkerSpec) -> Choice:
        """The backend and the devices that a worker may use. Raises InvalidField."""
        last, now = self._last, anyio.current_time()
        # What devices there are is asked again before anything is granted: a fresh reading may serve twice.
        machine = last if last is not None and now - last.at < MAX_READING_AGE else await self._look()
        return backends.choose(spec.backend, spec.device, spec.engine, await self._build(spec), machine)

    async def check_floor(self) -> None:
        """Raise DoesNotFit when not even the memory is left that has to stay free."""
        survey = await self.survey()
        check = admission.floor(survey.machine, survey.holdings, self.limits)
        if not check.fits:
            self.refusals[check.resource] += 1
            log.warning("spawn_refused", reason=check.reason)
            raise DoesNotFit(check.reason, **admission.floor_details(check))

    async def learn(self, spec: WorkerSpec, download_bytes: int = 0) -> Known:
        """What is known of its model and of its engine; *download_bytes*: of a model that is not here yet.

        It asks disks and children, which may hang: not to be awaited under the lock of the pool. Raises ModelNotFound
        or NotAModelFile.
        """
        facts = ModelFacts(download_bytes) if download_bytes else await self._facts(spec)
        return Known(facts, await self._build(spec))

    async def decide(
        self, spec: WorkerSpec, known: Known, download_bytes: int = 0, *, is_restart: bool = False
    ) -> Verdict:
        """Whether it fits now; the claim of a registered worker with its id does not count against it.

        Of a restart, nor do those that were refused one.

        Raises InvalidField where the backend or the device is not there. Only under the lock of the pool is it still
        true when it is acted on.
        """
        survey = await self.survey()
        choice = backends.choose(spec.backend, spec.device, spec.engine, known.build, survey.machine)
        demand = Demand(
            model_ref=spec.model_ref,
            backend=choice.backend,
            devices=choice.devices,
            ctx_size=spec.ctx_size,
            size=partial(self._need, spec, known.facts),
            worker_id=spec.worker_id or None,
            limit_bytes=spec.max_memory_bytes,
            download_bytes=download_bytes,
            others=_others(spec, choice, known.build, survey.machine),
        )
        refused = {record.worker_id for record in self._registry if record.is_refused and is_restart}
        holdings = [holding for holding in survey.holdings if holding.worker_id not in refused]
        return admission.decide(demand, survey.machine, holdings, self.limits)

    async def claim_as_placed(self, spec: WorkerSpec, placement: Placement) -> Claim | None:
        """What a worker that runs already has a claim to; None where its model cannot be looked at any more."""
        try:
            return Claim(placement, self._need(spec, await self._facts(spec), placement, spec.ctx_size))
        except RequestError as error:
            log.warning("claim_not_known", worker_id=spec.worker_id, reason=error.message)
            return None

    def refused(self, verdict: Verdict) -> DoesNotFit:
        """The error for a spawn that does not fit, which is counted and logged."""
        self.refusals.update(verdict.lacking)
        details = verdict.details()
        log.warning("spawn_refused", verdict=details)
        return DoesNotFit(verdict.message, **details)

    def uuids(self, placement: Placement) -> tuple[str, ...]:
        """Of the devices of a placement; empty where the driver names none."""
        found = (self._uuids.get((placement.backend, device), "") for device in placement.devices)
        return tuple(uuid for uuid in found if uuid)

    async def _facts(self, spec: WorkerSpec) -> ModelFacts:
        return (await self._model(spec))[1]

    async def _model(self, spec: WorkerSpec) -> tuple[str, ModelFacts]:
        """Its path, empty where it has no file, and what is known of it."""
        path = await self._sources.library.locate(model_ref.parse(spec.model_ref))
        return path, await self._sources.sizer.facts(path) if path else ModelFacts(0)

    def _need(self, spec: WorkerSpec, facts: ModelFacts, placement: Placement, ctx_size: int) -> Need:
        asked, options = replace(spec, ctx_size=ctx_size), self._options
        peak = self.peaks.of(asked, facts.file_bytes, placement)
        kind = self._of_kind(asked)
        return sizing.need_of(kind, facts, options.prompt_cache_bytes, placement, peak, options.processor)

    def _peak_key(self, spec: WorkerSpec, file_bytes: int, placement: Placement) -> str:
        # By its name too: two commands are of one kind.
        cache = self._options.prompt_cache_bytes
        return f"{spec.engine}:{sizing.peak_key(self._of_kind(spec), file_bytes, placement, cache)}"

    def _engine(self, spec: WorkerSpec) -> EngineOptions:
        return self._options.engines.get(spec.engine, EngineOptions())

    def _of_kind(self, spec: WorkerSpec) -> WorkerSpec:
        """*spec* with what its engine is for the name that it has in the settings."""
        return replace(spec, engine=self._kind(spec))

    def _kind(self, spec: WorkerSpec) -> str:
        return kind_of(spec.engine, self._engine(spec))

    async def _build(self, spec: WorkerSpec) -> EngineBuild | None:
        # Every build runs on the processor, and the child that is asked may hang in the driver of a GPU.
        if self._kind(spec) != LLAMA_CPP or spec.backend == "cpu":
            return None
        return await self._sources.machine.build_of(self._engine(spec).python)

    async def model_to_load(self, record: Record) -> ModelToLoad:
        """For a worker that is about to start, at its placement. Raises ModelNotFound or NotAModelFile."""
        spec = record.worker.spec
        path, facts = await self._model(spec)
        record.model_bytes, record.model_path = facts.file_bytes, path
        if facts.header is None or self._kind(spec) != LLAMA_CPP:
            return ModelToLoad(path)
        added = repacking.added_args(facts.header, spec.engine_args, record.placement, self._options.processor)
        return ModelToLoad(path, added)

    # What there is.

    async def builds(self) -> Mapping[str, EngineBuild]:
        """What the engines that can be asked were built for, by their name in the settings."""
        named = {LLAMA_CPP: EngineOptions(), **self._options.engines}
        asked = {name: options for name, options in named.items() if kind_of(name, options) == LLAMA_CPP}
        return {name: await self._sources.machine.build_of(options.python) for name, options in asked.items()}

    async def survey(self) -> Survey:
        """The machine as of now, and every claim. What is on the move is measured before the machine is looked at.

        In that order, memory that is taken in between counts twice, and never not at all.
        """
        fresh = await self._measure_those_in_motion()
        machine = await self._look()
        self._uuids.update({(device.backend, device.index): device.uuid for device in machine.devices})
        now = anyio.current_time()
        records = [*self._registry, *self._registry.departed.values()]
        holdings = [self._holding(record, fresh, machine, now) for record in records]
        return Survey(machine, tuple(holding for holding in holdings if holding is not None))

    async def _look(self, max_age: float = MAX_READING_AGE) -> MachineReading:
        try:
            self._last = machine = await self._sources.machine.look(max_age)
        except OSError as error:
            raise ControlUnavailable(f"What memory is left cannot be read now ({error}). Try again.") from error
        return machine

    async def _measure_those_in_motion(self) -> Mapping[str, Footprint]:
        """What the workers hold that are starting, loading or ending, or were when they were sampled, by id."""
        moving = {record.worker_id: record for record in self._registry if _is_in_motion(record)}
        began = anyio.current_time()
        # Once is enough for those that are ready: from then on they are as still as one that was sampled.
        self._stilled = {i: still for i, still in self._stilled.items() if i in moving and still.is_of(moving[i])}
        pids = {i: record.worker.pid for i, record in moving.items() if i not in self._stilled}
        asked = [pid for pid in pids.values() if pid is not None]
        try:
            measured = await self._sources.node.measure(asked) if asked else {}
        except OSError as error:
            # Without a measurement nothing counts as taken: too much is reserved, and nobody gets it twice.
            log.warning("workers_not_measured", reason=str(error))
            measured = {}
        found = {i: measured.get(pid or 0, Footprint()) for i, pid in pids.items()}
        for worker_id, footprint in found.items():
            since = moving[worker_id].worker.ready_since
            if since is not None and since < began and footprint.pids:
                self._stilled[worker_id] = _Stilled(moving[worker_id], since, footprint)
        return {**found, **{worker_id: still.footprint for worker_id, still in self._stilled.items()}}

    def _holding(
        self, record: Record, fresh: Mapping[str, Footprint], machine: MachineReading, now: float
    ) -> Holding | None:
        worker, footprint = record.worker, fresh.get(record.worker_id, record.footprint)
        has_left = record.worker_id in self._registry.departed
        if worker.pid is None or has_left:
            footprint = None
        claim = record.claim or _claim_as_measured(footprint)
        if claim is None:
            return None
        since = worker.ready_since
        is_settled = worker.state in _SETTLED and since is not None and now - since > MAX_READING_AGE
        is_idle = worker.state is WorkerState.READY and not worker.spec.external
        return Holding(
            worker_id=record.worker_id,
            model_ref=worker.spec.model_ref,
            claim=claim,
            ram_bytes=footprint.private_bytes + footprint.locked_bytes if footprint else 0,
            vram_bytes=None if has_left else vram_of(claim.placement, footprint or Footprint(), machine.devices),
            is_settled=is_settled,
            is_idle=is_idle and self._routes.in_flight(record.worker_id) == 0,
        )

    # What was taken.

    async def note_measured(self) -> None:
        """Called after each sampling: keeps the peaks, and what each worker has of the devices."""
        records = [record for record in self._registry if record.claim is not None]
        devices = await self._devices_of(records)
        for record in records:
            if record.footprint is None or record.claim is None:
                record.vram = None
                continue
            record.vram = vram_of(record.claim.placement, record.footprint, devices)
            self.peaks.note(record, record.claim.placement, record.footprint)

    async def _devices_of(
        self, records: Sequence[Record], max_age: float = MAX_READING_AGE
    ) -> tuple[DeviceReading, ...]:
        if not any(record.placement.devices for record in records):
            return ()
        try:
            return (await self._look(max_age)).devices
        except ControlUnavailable as error:
            log.warning("devices_not_measured", reason=error.message)
            return ()

    async def wait_returned(self, record: Record) -> None:
        """Return once what a life that has ended held of its devices is seen free, or after RETURN_TIMEOUT.

        Host memory needs no look: the processes are gone by now, and the kernel frees it before it tells their end.
        """
        pids, record.pids = record.pids, ()
        if record.claim is None or not record.claim.placement.devices:
            return
        placement = record.claim.placement
        with anyio.move_on_after(RETURN_TIMEOUT):
            before: list[int] | None = None
            while True:
                devices = on(placement, await self._devices_of([record], RETURN_INTERVAL))
                holders = {pid for device in devices for pid in device.held or ()}
                # A driver that names no processes is done when it gives back no more.
                free = [device.free_bytes for device in devices if device.is_live and device.held is None]
                if holders.isdisjoint(pids) and (not free or free == before):
                    return
                before = free
                await anyio.sleep(RETURN_INTERVAL)
        log.warning("vram_not_returned", worker_id=record.worker_id, devices=placement.devices, pids=pids)


def _others(
    spec: WorkerSpec, choice: Choice, build: EngineBuild | None, machine: MachineReading
) -> tuple[DeviceReading, ...]:
    """The devices that would do as well, had nobody asked for one."""
    if spec.device is None or not choice.devices:
        return ()
    free = backends.choose(choice.backend, None, spec.engine, build, machine)
    return tuple(device for device in free.devices if device not in choice.devices)


def on(placement: Placement, devices: Sequence[DeviceReading]) -> list[DeviceReading]:
    """Those of *devices* that are in the placement, as far as they are there."""
    return [device for device in devices if device.backend == placement.backend and device.index in placement.devices]


def vram_of(placement: Placement, footprint: Footprint, devices: Sequence[DeviceReading]) -> Mapping[int, int] | None:
    """Bytes that the processes of a footprint hold on each device of a placement; None where that cannot be seen."""
    there = on(placement, devices)
    if not there or any(device.held is None for device in there):
        return None
    return {d.index: sum(held for pid, held in (d.held or {}).items() if pid in footprint.pids) for d in there}


def _is_in_motion(record: Record) -> bool:
    """Whether what is known of its memory may lack gigabytes: also of one that is ready since its last sampling."""
    worker = record.worker
    if worker.spec.external:
        return False
    return worker.state in _IN_MOTION or (worker.ready_since is not None and record.measured_at < worker.ready_since)


def _claim_as_measured(footprint: Footprint | None) -> Claim | None:
    """One that was not admitted here (started by hand, say) has what it holds: its mapped pages look available."""
    return None if footprint is None else Claim(Placement(), Need(Parts(weights_bytes=footprint.rss_bytes)))
