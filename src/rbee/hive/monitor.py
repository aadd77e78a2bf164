"""Asks every worker for its health, measures its memory, and ends what is hung, unhealthy, stuck, too big or idle."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, NamedTuple

import anyio
import structlog

from rbee.core import liveness, progress
from rbee.core.events import Condemned, EndRequested, Event
from rbee.core.exits import ExitReason
from rbee.core.launch import Footprint
from rbee.core.progress import Motion, Quiet, Reading, Still, Work
from rbee.core.routing import Route, RouteTable
from rbee.core.worker import TRANSITIONS, Worker, WorkerState
from rbee.hive.announcements import is_on_loopback
from rbee.hive.ports import Node, Probe
from rbee.hive.registry import Record, Registry
from rbee.nodes.descriptors import NONE_LEFT

log = structlog.get_logger(__name__)

LOOK_INTERVAL: Final = 1.0
"""Seconds between two looks at what is known anyway; so late may a change of busy to idle be seen."""

CHECKS_AT_ONCE: Final = 64
"""Bounds the sockets and tasks of one round of health checks."""

NEAR_LIMIT: Final = 0.9
"""Of its limit, from where on a worker is measured exactly: the cheap sum counts pages that its processes share more
than once, and nobody is ended for that."""

_LOADING: Final = (WorkerState.STARTING, WorkerState.LOADING)


@dataclass(frozen=True, slots=True)
class MonitorOptions:
    """Times in seconds, sizes in bytes. ``health_paths``: by engine name; '/health' for any that is not there."""

    interval: float
    memory_interval: float
    health_timeout: float
    max_failures: int
    hang_timeout: float
    load_timeout: float
    load_limit: float
    max_worker_memory: int
    health_paths: Mapping[str, str]


@dataclass(slots=True)
class _Watch:
    """What the monitor remembers of one life of one worker; ``began``: when its load did."""

    record: Record
    incarnation: int
    began: float
    reading: Reading | None = None
    load: Still | None = None
    work: Still | None = None
    quiet: Quiet | None = None
    checked: Still | None = None

    def forgive(self, gap: float, now: float) -> None:
        """*gap* seconds until *now* count for nobody."""
        self.began = min(now, self.began + gap)
        self.load, self.work = _later(self.load, gap, now), _later(self.work, gap, now)
        self.checked = _later(self.checked, gap, now)
        if self.quiet is not None:
            self.quiet = replace(self.quiet, since=min(now, self.quiet.since + gap))


class _Failure(NamedTuple):
    why: str
    timed_out: bool = False
    unasked: bool = False
    """It was never asked, since this hive had no descriptor left."""


class Monitor:
    """``end`` gets the worker's id and what is to happen to it, and applies it before it returns.

    ``on_measured`` is called after each sampling.
    """

    def __init__(
        self,
        options: MonitorOptions,
        registry: Registry,
        routes: RouteTable,
        node: Node,
        probe: Probe,
        engine_key: Callable[[Worker], str],
        end: Callable[[str, Event], None],
        on_measured: Callable[[], Awaitable[None]],
    ) -> None:
        self._options = options
        self._registry = registry
        self._routes = routes
        self._node = node
        self._probe = probe
        self._engine_key = engine_key
        self._end = end
        self._on_measured = on_measured
        self._watches: dict[str, _Watch] = {}
        self._measured = anyio.Event()
        self._pauses = 0

    async def run(self) -> None:
        """Watch all workers. Ends only by cancellation."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._look_on)
            tasks.start_soon(self._measure_on)
            tasks.start_soon(self._check_on)

    def hive_was_paused(self, gap: float) -> None:
        """The hive did not run for *gap* seconds until now: nobody could be seen to move, so nobody is blamed."""
        self._pauses += 1
        now = anyio.current_time()
        for watch in self._watches.values():
            watch.forgive(gap, now)

    def _watch(self, record: Record) -> _Watch:
        """The watch over the present life of a worker; a new life begins without a past."""
        worker = record.worker
        watch = self._watches.get(record.worker_id)
        if watch is None or watch.record is not record or watch.incarnation != worker.incarnation:
            record.failed_checks, record.footprint, record.pids = 0, None, ()
            watch = self._watches[record.worker_id] = _Watch(record, worker.incarnation, worker.since)
        return watch

    # What is known: looked at every second, and at once when there is a new measurement.

    async def _look_on(self) -> None:
        while True:
            delay = self._until_next_look(anyio.current_time())
            due = anyio.current_time() + delay
            with anyio.move_on_after(delay):
                await self._measured.wait()
            if liveness.paused(anyio.current_time() - due):
                # This hive did not run. How long, its tick is about to tell; nobody is judged before.
                await anyio.sleep(liveness.TICK_INTERVAL)
                continue
            if self._measured.is_set():
                self._measured = anyio.Event()
            self._look(anyio.current_time())

    def _until_next_look(self, now: float) -> float:
        """One look interval, or less if somebody may be idle for long enough before."""
        delay = LOOK_INTERVAL
        for watch in self._watches.values():
            timeout = watch.record.worker.spec.idle_timeout
            if timeout and watch.quiet is not None and watch.quiet.since + timeout > now:
                delay = min(delay, watch.quiet.since + timeout - now)
        return delay

    def _look(self, now: float) -> None:
        self._watches = {i: w for i, w in self._watches.items() if self._registry.find(i) is w.record}
        for record in list(self._registry):
            watch = self._watch(record)
            if (condemned := self._judge(record, watch, now)) is not None:
                self._condemn(record, condemned)
            elif self._idles(record, watch, now):
                log.info(
                    "worker_idle_for_too_long", worker_id=record.worker_id, seconds=record.worker.spec.idle_timeout
                )
                self._end(record.worker_id, EndRequested(ExitReason.IDLE))

    def _judge(self, record: Record, watch: _Watch, now: float) -> Condemned | None:
        worker = record.worker
        if worker.spec.external or (worker.state, Condemned) not in TRANSITIONS:
            return None
        if record.footprint is not None:
            own_limit, limit = worker.spec.max_memory_bytes, self._options.max_worker_memory
            if reason := progress.over_memory(record.footprint, own_limit, limit, _expected(record)):
                return Condemned(ExitReason.OVER_MEMORY, reason)
        if worker.state is WorkerState.STARTING and worker.pid is None:
            return None  # It waits for its fork, which is nobody's fault.
        if worker.state in _LOADING:
            reason = self._stuck_load(watch, now)
            return Condemned(ExitReason.LOAD_TIMEOUT, reason) if reason else None
        reason = self._hang(record, watch, now)
        return Condemned(ExitReason.UNHEALTHY, reason) if reason else None

    def _stuck_load(self, watch: _Watch, now: float) -> str | None:
        options, seen = self._options, Motion(reading=watch.reading)
        watch.load = progress.stillness(watch.load, seen, now, progress.load_moved)
        return progress.load_stands_still(watch.load, seen, now, options.load_timeout) or progress.loads_too_long(
            watch.began, now, options.load_limit
        )

    def _hang(self, record: Record, watch: _Watch, now: float) -> str | None:
        work, timeout = self._work(record), self._options.hang_timeout
        if not work.is_busy:
            watch.work = None
            return None
        seen = self._motion(record, watch)
        moved = partial(progress.worked, processor_seconds=progress.processor_threshold(timeout))
        watch.work = progress.stillness(watch.work, seen, now, moved)
        return progress.hung(watch.work, seen, work, now, timeout)

    def _idles(self, record: Record, watch: _Watch, now: float) -> bool:
        worker = record.worker
        if worker.state is not WorkerState.READY or not worker.spec.idle_timeout:
            watch.quiet = None
            return False
        watch.quiet = progress.quiet(watch.quiet, self._work(record), now, worker.since)
        return now >= watch.quiet.since + worker.spec.idle_timeout

    def _work(self, record: Record) -> Work:
        route = self._route(record)
        return Work(
            in_flight=route.in_flight,
            requests=route.activity.requests,
            slots_busy=record.telemetry.slots_busy or 0,
            heard_at=record.vital.since,
        )

    def _motion(self, record: Record, watch: _Watch) -> Motion:
        relayed_bytes = self._route(record).activity.relayed_bytes
        return Motion(relayed_bytes, progress.counters(record.telemetry), watch.reading)

    def _route(self, record: Record) -> Route:
        known = self._routes.routes.get(record.worker_id)
        return known if known is not None else Route(record.worker_id, record.worker.spec.model_ref)

    def _condemn(self, record: Record, event: Condemned) -> None:
        log.warning("worker_condemned", worker_id=record.worker_id, cause=str(event.cause), reason=event.reason)
        self._end(record.worker_id, event)

    # Memory and processor time.

    async def _measure_on(self) -> None:
        while True:
            due = anyio.current_time() + self._options.memory_interval
            try:
                await self._measure()
                await self._on_measured()
            except OSError as error:
                # Out of descriptors, say: what was not measured is not judged.
                log.warning("workers_not_measured", reason=str(error))
            await _sleep_until(due)

    async def _measure(self) -> None:
        at = anyio.current_time()
        asked = [(r, r.worker) for r in self._registry if r.worker.pid is not None and _is_here(r.worker)]
        pids = {pid for _, worker in asked for pid in (worker.pid, worker.engine_pid) if pid is not None}
        footprints = dict(await self._node.measure(sorted(pids)))
        footprints.update(await self._measure_exactly([worker for _, worker in asked], footprints))
        for record, worker in asked:
            if not self._same_life(record, worker) or worker.pid is None:
                continue
            watch = self._watch(record)
            footprint = record.footprint = footprints.get(worker.pid)
            record.measured_at = at
            record.pids = record.pids if footprint is None else footprint.pids
            # Once there is an engine, it alone is watched for work: its keeper is never quite still.
            subject = worker.pid if worker.engine_pid is None else worker.engine_pid
            if subject in footprints:
                watch.reading = Reading(subject, at, footprints[subject])
        for record in self._registry:
            if record.worker.pid is None:
                record.footprint = None
        self._measured.set()

    async def _measure_exactly(
        self, workers: Sequence[Worker], cheaply: Mapping[int, Footprint]
    ) -> Mapping[int, Footprint]:
        """The footprints of those that come near their limit, by the pid of their keeper."""
        exact: dict[int, Footprint] = {}
        for worker in workers:
            pid, limit = worker.pid, worker.spec.memory_limit(self._options.max_worker_memory)
            if pid is None or pid not in cheaply or cheaply[pid].private_bytes < NEAR_LIMIT * limit:
                continue
            if (footprint := await self._node.measure_exactly(pid)) is not None:
                exact[pid] = footprint
        return exact

    def _same_life(self, record: Record, worker: Worker) -> bool:
        known = self._registry.find(record.worker_id)
        now = record.worker
        return known is record and (now.incarnation, now.pid) == (worker.incarnation, worker.pid)

    # Health.

    async def _check_on(self) -> None:
        due = anyio.current_time()
        while True:
            due = max(due + self._options.interval, anyio.current_time())
            await _sleep_until(due)
            await self._check_all()

    async def _check_all(self) -> None:
        limiter = anyio.CapacityLimiter(CHECKS_AT_ONCE)
        async with anyio.create_task_group() as tasks:
            for record in self._registry:
                tasks.start_soon(self._check, record, limiter)

    async def _check(self, record: Record, limiter: anyio.CapacityLimiter) -> None:
        async with limiter:
            worker = record.worker
            if not _serves(worker) or self._registry.find(record.worker_id) is not record:
                return
            watch, started, pauses = self._watch(record), anyio.current_time(), self._pauses
            before = watch.checked or Still(started, self._motion(record, watch))
            failure = await self._ask(worker)
        overslept = liveness.paused(anyio.current_time() - started - self._options.health_timeout)
        if failure is not None and failure.timed_out:
            # Whether it computed meanwhile is known once it is measured again.
            with anyio.move_on_after(2 * self._options.memory_interval):
                await self._measured.wait()
        if not self._same_life(record, worker) or not _serves(record.worker):
            return
        now = anyio.current_time()
        seen = self._motion(record, watch)
        watch.checked = Still(now, seen)
        if failure is None:
            record.failed_checks = 0
            return
        enough = progress.processor_threshold(now - before.since)
        excused = overslept or pauses != self._pauses or progress.worked(before.motion, seen, enough)
        if failure.unasked or (failure.timed_out and excused):
            return
        self._count_failure(record, failure)

    async def _ask(self, worker: Worker) -> _Failure | None:
        options = self._options
        path = options.health_paths.get(worker.spec.engine, "/health")
        try:
            with anyio.fail_after(options.health_timeout):
                reply = await self._probe.get(worker.url, path, self._engine_key(worker))
        except TimeoutError:
            return _Failure(f"no answer within {options.health_timeout:g} s", timed_out=True)
        except OSError as error:
            # anyio tells only in the cause why it could not connect.
            causes = [each.errno for each in (error, error.__cause__) if isinstance(each, OSError)]
            unasked = any(cause in NONE_LEFT for cause in causes)
            return _Failure(str(error) or type(error).__name__, unasked=unasked)
        return None if reply.status == 200 else _Failure(f"it answered {reply.status}")

    def _count_failure(self, record: Record, failure: _Failure) -> None:
        record.failed_checks += 1
        log.info("health_check_failed", worker_id=record.worker_id, reason=failure.why, failures=record.failed_checks)
        if record.failed_checks < self._options.max_failures:
            return
        checks = "a health check" if record.failed_checks == 1 else f"{record.failed_checks} health checks in a row"
        reason = f"{checks} failed (at last: {failure.why})"
        if record.worker.spec.external:
            log.warning("worker_condemned", worker_id=record.worker_id, cause="unhealthy", reason=reason)
            self._end(record.worker_id, EndRequested(ExitReason.UNHEALTHY, force=True))
        else:
            self._condemn(record, Condemned(ExitReason.UNHEALTHY, reason))


def _serves(worker: Worker) -> bool:
    return worker.state is WorkerState.READY and worker.url != ""


async def _sleep_until(due: float) -> None:
    await anyio.sleep(max(0.0, due - anyio.current_time()))


def _later(still: Still | None, gap: float, now: float) -> Still | None:
    return still and replace(still, since=min(now, still.since + gap))


def _is_here(worker: Worker) -> bool:
    """Whether its processes are on this machine."""
    return not worker.spec.external or is_on_loopback(worker.url)


def _expected(record: Record) -> int | None:
    return None if record.claim is None else record.claim.need.ram.total_bytes
