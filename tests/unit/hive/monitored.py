"""A monitor on a jumping clock, and the workers that it sees."""

from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

import anyio

from rbee.core.launch import Footprint, Reply, Telemetry
from rbee.core.liveness import seen
from rbee.core.routing import Route, RouteTable
from rbee.core.worker import Worker, WorkerSpec, WorkerState, advance
from rbee.hive.monitor import Monitor, MonitorOptions
from rbee.hive.registry import Record, Registry
from rbee.testing import FakeNode, FakeProbe

S = WorkerState
MIB, GIB = 2**20, 2**30
HEALTHY = Reply(200, b'{"status":"ok"}')
OPTIONS = MonitorOptions(
    interval=30.0,
    memory_interval=5.0,
    health_timeout=5.0,
    max_failures=3,
    hang_timeout=120.0,
    load_timeout=300.0,
    load_limit=3600.0,
    max_worker_memory=8 * GIB,
    health_paths={"vllm": "/ping"},
)


class Scene:
    """A monitor and what it sees. ``ended``: (seconds since the scene began, worker id, event)."""

    def __init__(self, **options):
        self.registry, self.routes = Registry(), RouteTable()
        self.node, self.probe = FakeNode(), FakeProbe()
        self.ended, self.samplings = [], 0
        self.start = anyio.current_time()
        self.monitor = Monitor(
            replace(OPTIONS, **options),
            self.registry,
            self.routes,
            self.node,
            self.probe,
            lambda worker: f"key of {worker.spec.worker_id}",
            self.end,
            self.measured,
        )

    async def measured(self):
        self.samplings += 1

    @property
    def now(self):
        return anyio.current_time() - self.start

    def add(self, worker_id="w-1", state=S.READY, *, pid=100, answering=True, **spec):
        worker = Worker(
            WorkerSpec(worker_id, "synthetic:x", **spec),
            state=state,
            since=anyio.current_time(),
            pid=pid,
            engine_pid=pid + 1,
            url=f"http://{worker_id}",
            slots=4,
        )
        record = Record(worker, seen(anyio.current_time(), 60.0), datetime.now(UTC))
        self.registry.add(record)
        self.routes.publish(Route(worker_id, "synthetic:x"))
        self.use(record)
        if answering:
            self.probe.answering[worker.url] = HEALTHY
        return record

    def end(self, worker_id, event):
        """As a supervisor does: an event that is not legal raises."""
        record = self.registry.get(worker_id)
        record.worker, _ = advance(record.worker, event, anyio.current_time())
        self.ended.append((self.now, worker_id, event))
        if record.worker.state is S.GONE:
            self.registry.remove(worker_id)

    @property
    def causes(self):
        return [event.cause for _, _, event in self.ended]

    # What workers do.

    def route(self, record):
        return self.routes.routes[record.worker_id]

    def begin(self, record):
        self.routes.acquire(record.worker_id)

    def finish(self, record):
        self.routes.release(record.worker_id)

    def beat(self, record, **telemetry):
        record.vital, record.telemetry = seen(anyio.current_time(), 60.0), Telemetry(**telemetry)

    def use(self, record, cpu=0.0, read=0, rss=0, private=0):
        """Its keeper and its engine use that much more."""
        for pid in (record.worker.pid, record.worker.engine_pid):
            old = self.node.footprints.get(pid, Footprint())
            self.node.footprints[pid] = Footprint(
                old.rss_bytes + rss, old.private_bytes + private, old.cpu_seconds + cpu, old.read_bytes + read
            )


@asynccontextmanager
async def watching(**options):
    scene = Scene(**options)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scene.monitor.run)
        yield scene
        tasks.cancel_scope.cancel()
