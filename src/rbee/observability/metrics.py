"""The metrics page: gauges from a look at the registry at scrape, counters from the journal and the usage sink.

Names and labels are DESIGN section 8's. The families that belong to parts that are not built yet come with them.
"""

from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import anyio
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from rbee.core.admission import Resource
from rbee.core.exits import ExitReason
from rbee.core.resources import MachineReading
from rbee.core.worker import WorkerState
from rbee.hive.journal import Transition
from rbee.hive.registry import Record, Registry
from rbee.observability.inference import DURATION_BUCKETS, InferenceCounts

_LOAD_BUCKETS: Final = (0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_SIGKILL: Final = 9
SHOWN_STATES: Final = ("starting", "loading", "idle", "busy", "draining", "stopping", "backoff", "failed")


@dataclass(frozen=True, slots=True)
class Sources:
    """What a scrape reads. The two load functions give requests by model reference."""

    registry: Registry
    in_flight_of: Callable[[str], int]
    queue_depth: Callable[[], Mapping[str, int]]
    in_flight: Callable[[], Mapping[str, int]]
    illegal_events: Callable[[], int]
    machine: Callable[[], MachineReading]
    circuit_activations: Callable[[], int]
    open_circuits: Callable[[], Mapping[str, int]]
    spawn_refusals: Callable[[], Mapping[Resource, int]]


class Metrics:
    """One per daemon; the registry is its own, never the library's global one."""

    def __init__(self, version: str) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._declare_hive(version)
        inference = InferenceCounts()
        self._registry.register(inference)
        self.used = inference.used

    def _declare_hive(self, version: str) -> None:
        own = self._registry
        build = GaugeMetricFamily("rbee_hive_build_info", "The version that runs.", labels=["version"])
        build.add_metric([version], 1)
        own.register(_Constant(build))
        self._stale = Counter("rbee_hive_workers_stale_total", "Workers found without a heartbeat.", registry=own)
        self._exits = Counter("rbee_hive_worker_exits_total", "Ended workers by reason.", ["reason"], registry=own)
        for reason in ExitReason:
            self._exits.labels(str(reason))
        self._graceful = Counter(
            "rbee_hive_workers_graceful_shutdown_total", "Workers that ended in their grace when told to.", registry=own
        )
        self._force_killed = Counter(
            "rbee_hive_workers_force_killed_total", "Workers that the hive ended by SIGKILL.", registry=own
        )
        self._restart_failures = Counter(
            "rbee_hive_worker_restart_failures_total", "Restarts that ended before they were ready.", registry=own
        )
        self._shutdown = Histogram(
            "rbee_hive_shutdown_duration_seconds",
            "From the first signal until no worker was left to stop.",
            buckets=DURATION_BUCKETS,
            registry=own,
        )
        self._load = Histogram(
            "rbee_hive_model_load_seconds",
            "From the start of loading to ready.",
            ["model"],
            buckets=_LOAD_BUCKETS,
            registry=own,
        )

    def watch(self, sources: Sources) -> None:
        """Read the gauges from *sources* at each scrape; called once, when there is something to read."""
        self._registry.register(_Gauges(sources))

    def page(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type, in the format that the Accept header asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def transition(self, entry: Transition) -> None:
        """Count what the journal says."""
        if entry.event == "WentStale":
            self._stale.inc()
        if entry.before is WorkerState.LOADING and entry.after is WorkerState.READY:
            self._load.labels(entry.model_ref).observe(entry.seconds)
        if entry.exit is None:
            return
        if entry.incarnation > 1 and not entry.was_ready and entry.after in (WorkerState.BACKOFF, WorkerState.FAILED):
            self._restart_failures.inc()
        self._exits.labels(str(entry.exit.reason)).inc()
        if entry.exit.reason is ExitReason.CRASHED:
            return
        if entry.exit.signal_number == _SIGKILL:
            self._force_killed.inc()
        else:
            self._graceful.inc()

    def shut_down(self, seconds: float) -> None:
        self._shutdown.observe(seconds)


class _Constant(Collector):
    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family


class _Gauges(Collector):
    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        records = list(self._sources.registry)
        yield self._by_state(records)
        degraded = sum(not record.healthy or record.failed_checks > 0 for record in records)
        yield _gauge("workers_failed_health_checks", "Workers whose last beat or health check was bad.", degraded)
        restarts = sum(record.worker.restart_count for record in records)
        yield _gauge("workers_restart_count", "Restarts of the workers that there are.", restarts)
        illegal = CounterMetricFamily("rbee_hive_illegal_events", "Events that a worker's state did not allow.")
        illegal.add_metric([], self._sources.illegal_events())
        yield illegal
        activations = CounterMetricFamily("rbee_hive_circuit_breaker_activations", "Circuits that were opened.")
        activations.add_metric([], self._sources.circuit_activations())
        yield activations
        yield from self._machine()
        yield from _per_worker(records, self._sources.in_flight_of)
        models = {record.worker.spec.model_ref for record in records}
        yield _by_model("queue_depth", "Requests that wait.", models, self._sources.queue_depth())
        yield _by_model("requests_in_flight", "Requests under way.", models, self._sources.in_flight())
        circuits = self._sources.open_circuits()
        yield _by_model("circuit_open", "1 where a circuit of the model is not closed.", models, circuits)

    def _by_state(self, records: list[Record]) -> Metric:
        family = GaugeMetricFamily(
            "rbee_hive_workers_total", "Workers by state.", labels=["state", "backend", "device"]
        )
        seen: Tally[tuple[str, str, str]] = Tally()
        places = {("cpu", "0")}
        for record in records:
            place = _place(record)
            places.add(place)
            state = record.worker.shown_state(self._sources.in_flight_of(record.worker_id))
            seen[(state, *place)] += 1
        for place in sorted(places):
            for state in SHOWN_STATES:
                family.add_metric([state, *place], seen[(state, *place)])
        return family

    def _machine(self) -> Iterator[Metric]:
        now = self._sources.machine()
        memory, disk = now.memory, now.models_disk
        yield _gauge("memory_available_bytes", "Memory that programs can still get.", memory.free_bytes)
        total = min(memory.total_bytes, memory.group_limit_bytes or memory.total_bytes)
        yield _gauge("memory_total_bytes", "Memory of the machine, or of the cgroup that limits the hive.", total)
        yield _gauge("disk_available_bytes", "Free on the models' file system.", disk.free_bytes)
        yield _gauge("disk_total_bytes", "Size of the models' file system.", disk.total_bytes)
        vram_total = GaugeMetricFamily("rbee_hive_vram_total_bytes", "Memory of each accelerator.", labels=["device"])
        vram_free = GaugeMetricFamily("rbee_hive_vram_free_bytes", "What of it nobody uses.", labels=["device"])
        for device in now.devices:
            vram_total.add_metric([f"{device.backend}:{device.index}"], device.total_bytes)
            vram_free.add_metric([f"{device.backend}:{device.index}"], device.free_bytes)
        yield vram_total
        yield vram_free
        refusals = CounterMetricFamily(
            "rbee_hive_worker_spawn_resource_failures", "Spawns refused for want of a resource.", labels=["resource"]
        )
        for resource in Resource:
            refusals.add_metric([str(resource)], self._sources.spawn_refusals().get(resource, 0))
        yield refusals


def _place(record: Record) -> tuple[str, str]:
    placement = record.placement
    return placement.backend, ",".join(map(str, placement.devices)) or "0"


def _gauge(name: str, text: str, value: float) -> Metric:
    family = GaugeMetricFamily(f"rbee_hive_{name}", text)
    family.add_metric([], value)
    return family


def _by_model(name: str, text: str, models: set[str], values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(f"rbee_hive_{name}", text, labels=["model"])
    for model in sorted(models | set(values)):
        family.add_metric([model], values.get(model, 0))
    return family


def _per_worker(records: list[Record], in_flight_of: Callable[[str], int]) -> Iterator[Metric]:
    def family(name: str, text: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"rbee_hive_worker_{name}", text, labels=["worker_id", "model"])

    memory = family("memory_bytes", "Resident memory of all processes of the worker.")
    vram = family("vram_bytes", "Video memory that its processes hold, as the driver or else the worker tells.")
    age = family("heartbeat_age_seconds", "Seconds since the last heartbeat, or the spawn.")
    busy = family("slots_busy", "Requests under way through the gateway.")
    now = anyio.current_time()
    for record in records:
        labels = [record.worker_id, record.worker.spec.model_ref]
        resident = record.footprint.rss_bytes if record.footprint is not None else record.telemetry.rss_bytes
        if resident is not None:
            memory.add_metric(labels, resident)
        held = record.telemetry.vram_bytes if record.vram is None else sum(record.vram.values())
        if held is not None:
            vram.add_metric(labels, held)
        age.add_metric(labels, record.vital.age(now))
        busy.add_metric(labels, in_flight_of(record.worker_id))
    return iter((memory, vram, age, busy))
