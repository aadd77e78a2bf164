"""rbee-hive: the composition root, the only module that builds adapters and wires everything."""

import gc
import math
import platform
import signal
import socket
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any, Final

import anyio
import anyio.to_thread
import structlog
import uvicorn
from anyio.abc import TaskGroup, TaskStatus

from rbee import __version__
from rbee.config.settings import Settings
from rbee.core import auth
from rbee.core.admission import Limits
from rbee.core.launch import EngineOptions, kind_of
from rbee.core.resources import DiskReading, MachineReading, MemoryReading
from rbee.core.restart import RestartRules
from rbee.core.routing import RouteTable
from rbee.core.worker import Restart
from rbee.gateway.options import GatewayOptions
from rbee.gateway.server import Gateway
from rbee.hive.heartbeats import Heartbeats
from rbee.hive.monitor import Monitor, MonitorOptions
from rbee.hive.options import Adapters, PoolOptions
from rbee.hive.orders import Defaults, Order
from rbee.hive.pool import Pool
from rbee.hive.reception import Reception, ReceptionOptions
from rbee.hive.registry import Registry
from rbee.models.library import ModelLibrary
from rbee.models.sizer import HeaderSizer
from rbee.nodes import descriptors, hard_limits
from rbee.nodes.disk import Disk
from rbee.nodes.engine_devices import EngineDevices
from rbee.nodes.gpus import NvidiaGpus
from rbee.nodes.local import LocalNode
from rbee.nodes.machine import LocalMachine
from rbee.nodes.probes import HttpProbe
from rbee.nodes.systemd import Notifier
from rbee.observability.metrics import Metrics, Sources
from rbee.observability.transitions import log_transition
from rbee.storage import secret
from rbee.storage.models import ModelStore
from rbee.storage.sockets import bind_private
from rbee.storage.workers import WorkerStore

log = structlog.get_logger(__name__)

LOG_CUT_INTERVAL: Final = 30.0
"""Seconds between two looks at the size of the workers' logs."""
MACHINE_INTERVAL: Final = 5.0
"""Seconds between two looks at memory and disk."""
START_PATIENCE: Final = 0.5
"""Seconds that the start waits for the drivers of GPUs; one that is slow to begin is read a little later."""
CONTROL_CLOSE_TIMEOUT: Final = 2
"""Whole seconds that open control requests (a followed log) get at the end."""
GATEWAY_CLOSE_TIMEOUT: Final = 2.0
FLUSH_TIMEOUT: Final = 2.0
"""Seconds for what was measured last to be written down."""
CLOSE_RESERVE: Final = 10.0
"""Seconds beyond shutdown_timeout after which the service manager may think that the stop hangs."""


@dataclass(frozen=True, slots=True)
class FrontDoor:
    """The bound and listening socket, and the url under which people reach it."""

    listener: socket.socket
    url: str
    tls: SSLContext | None = None


class Daemon:
    """One hive. The caller holds the lock of the state directory."""

    def __init__(self, settings: Settings, environ: Mapping[str, str], door: FrontDoor) -> None:
        state_dir = settings.server.state_dir
        self._settings, self._door = settings, door
        self._routes, self._registry, self._metrics = RouteTable(), Registry(), Metrics(__version__)
        self._policy = auth.AuthPolicy(
            digests=digests(settings),
            worker_secret=secret.load_or_create(state_dir / "secret"),
            metrics_auth=settings.auth.metrics_auth,
        )
        self._store = WorkerStore(state_dir / "rbee.db")
        # Before any child is started: it moves this process into a group of its own.
        groups = hard_limits.worker_groups() if settings.limits.hard_memory_limit else None
        self._node = LocalNode(state_dir / "workers", environ, settings.log.max_bytes, settings.log.keep, groups)
        self._control_socket = bind_private(state_dir)
        self._control_path = control_path = str(self._control_socket.getsockname())
        library = ModelLibrary([settings.models.directory, *settings.models.allowed_roots])
        probe = HttpProbe()
        self._machine = LocalMachine(
            Disk(settings.models.directory), Disk(state_dir), EngineDevices(environ).build_of, NvidiaGpus(environ)
        )
        models = self._models = ModelStore(state_dir / "models.db")
        self._pool = Pool(
            pool_options(settings, control_path),
            Adapters(self._node, self._store, library, probe, self._machine, HeaderSizer(models), models),
            self._registry,
            self._routes,
            self._policy,
        )
        workers = settings.workers
        self._reception = Reception(
            ReceptionOptions(workers.allow_external, workers.external_hosts, door.listener.getsockname()[1]),
            self._pool,
            self._registry,
            self._node,
        )
        self._pool.journal.subscribe(self._metrics.transition)
        self._pool.journal.subscribe(log_transition)
        self._monitor = Monitor(
            monitor_options(settings),
            self._registry,
            self._routes,
            self._node,
            probe,
            self._pool.engine_key,
            self._pool.end,
            self._pool.admissions.note_measured,
        )
        beat = settings.heartbeat
        self._heartbeats = Heartbeats(
            self._registry,
            beat.interval,
            beat.stale_after,
            self._pool.went_stale,
            self._monitor.hive_was_paused,
            descriptors.can_open,
        )
        self._notifier = Notifier(environ)
        self._gateway = Gateway(
            gateway_options(settings, control_path), self._routes, self._policy, self._metrics.used, __version__
        )
        self._control: ControlServer | None = None
        nothing = DiskReading("", 0, 0)
        self._reading, self._machine_is_hidden = MachineReading(0.0, MemoryReading(0, 0), nothing, nothing), False
        self._stopping = False
        self._left: list[str] = []

    async def run(self) -> list[str]:
        """Serve on the bound listener until a signal; returns the ids of workers that would not stop.

        Raises OSError where the database cannot be used; nothing was started then.
        """
        door = self._door
        await self._gateway.serve(door.listener, door.tls)
        log.info("hive_listening", url=door.url, version=__version__, state_dir=str(self._settings.server.state_dir))
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            set_aside = await self._store.open()
            if set_aside is not None:
                log.error("database_set_aside", path=str(set_aside.path), reason=set_aside.reason)
            rows = await self._store.load()
            async with anyio.create_task_group() as tasks:
                await tasks.start(self._pool.run)
                await self._pool.admissions.peaks.load()
                await self._pool.adopt(rows)
                # From here on a signal finds every worker that there is.
                tasks.start_soon(self._obey, signals, tasks)
                tasks.start_soon(self._notifier.run_watchdog)
                await self._start(tasks, len(rows))
                await anyio.sleep_forever()
        return self._left

    async def _start(self, tasks: TaskGroup, stored: int) -> None:
        await tasks.start(self._read_machine)
        self._metrics.watch(self._sources())
        tasks.start_soon(self._heartbeats.run)
        tasks.start_soon(self._monitor.run)
        tasks.start_soon(self._node.cut_logs, LOG_CUT_INTERVAL)
        # In a thread: it takes 0.3 s, and health is asked for from the first moment.
        app = await anyio.to_thread.run_sync(self._build_control)
        self._control = ControlServer(app)
        tasks.start_soon(self._control.serve, [self._control_socket])
        await self._control.accepting.wait()
        # What was built until here stays: a full collection would look through it, and stop every stream for 30 ms.
        gc.freeze()
        self._gateway.control_up = True
        self._gateway.ready_problem = lambda: "the workers of the hive before are being looked for"
        await self._pool.wait_adopted()
        self._gateway.adopting = False
        if not self._stopping:
            self._gateway.ready_problem = lambda: None
            self._notifier.ready("Serving.")
            log.info("hive_ready", url=self._door.url, stored_workers=stored)

    def _build_control(self) -> Any:
        from rbee.control import app, context  # noqa: PLC0415 - not needed to say that we are alive

        settings = self._settings
        return app.build(
            context.Context(
                pool=self._pool,
                reception=self._reception,
                registry=self._registry,
                heartbeats=self._heartbeats,
                routes=self._routes,
                requests=self._gateway.log,
                node=self._node,
                policy=self._policy,
                defaults=defaults(settings),
                limits=limits(settings),
                metrics_page=self._metrics_page,
                heartbeat_interval=settings.heartbeat.interval,
                orphan_timeout=orphan_timeout(settings),
            )
        )

    def _metrics_page(self, accept: str) -> Any:
        from rbee.control.context import Page  # noqa: PLC0415 - as above

        self._gateway.log.settle()
        return Page(*self._metrics.page(accept))

    def _sources(self) -> Sources:
        return Sources(
            registry=self._registry,
            in_flight_of=self._routes.in_flight,
            queue_depth=self._gateway.waiting,
            in_flight=self._gateway.in_flight,
            illegal_events=lambda: self._pool.illegal_events,
            machine=lambda: self._reading,
            circuit_activations=lambda: self._pool.circuits.activations,
            open_circuits=self._pool.circuits.open_by_model,
            spawn_refusals=lambda: self._pool.admissions.refusals,
        )

    async def _read_machine(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep a reading at hand: a scrape must not wait for a disk that does not answer."""
        await self._look_at_machine(START_PATIENCE)
        task_status.started()
        while True:
            await anyio.sleep(MACHINE_INTERVAL)
            await self._look_at_machine()

    async def _look_at_machine(self, device_patience: float = math.inf) -> None:
        try:
            self._reading = await self._machine.look(device_patience=device_patience)
            self._machine_is_hidden = False
        except OSError as error:
            # No descriptor left: the last reading is better than no hive.
            if not self._machine_is_hidden:
                log.error("machine_not_read", reason=str(error))  # noqa: TRY400
            self._machine_is_hidden = True

    async def _obey(self, signals: Any, tasks: TaskGroup) -> None:
        async for number in signals:
            log.info("signal_received", signal=signal.Signals(number).name, again=self._stopping)
            if self._stopping:
                self._pool.force_stop()
            else:
                self._stopping = True
                tasks.start_soon(self._stop, tasks)

    async def _stop(self, tasks: TaskGroup) -> None:
        """The order of DESIGN section 3: inference refused, workers, event streams, control API, gateway, database."""
        self._gateway.closing = True
        self._gateway.ready_problem = lambda: "shutting down"
        began, lifecycle = anyio.current_time(), self._settings.lifecycle
        self._notifier.extend_timeout(lifecycle.shutdown_timeout + CLOSE_RESERVE)
        self._notifier.stopping("Stopping the workers.")
        end_workers = self._pool.leave if lifecycle.on_shutdown == "leave" else self._pool.stop
        self._left = await end_workers(lifecycle.shutdown_timeout)
        self._metrics.shut_down(anyio.current_time() - began)
        self._pool.journal.close()
        self._gateway.stop_accepting()
        if self._control is not None:
            self._control.end()
            await self._control.ended.wait()
        await self._gateway.close(GATEWAY_CLOSE_TIMEOUT)
        self._store.close()
        with anyio.move_on_after(FLUSH_TIMEOUT):
            await self._pool.admissions.peaks.flush()
        self._models.close()
        await anyio.Path(self._control_path).unlink(missing_ok=True)
        self._notifier.close()
        log.info("hive_stopped", would_not_stop=self._left)
        tasks.cancel_scope.cancel()


class ControlServer(uvicorn.Server):
    """uvicorn on a socket that is bound already, with signals left to the daemon."""

    def __init__(self, app: Any) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=CONTROL_CLOSE_TIMEOUT,
            )
        )
        self.accepting = anyio.Event()
        self.ended = anyio.Event()
        self._asked_to_end = anyio.Event()

    def end(self) -> None:
        self._asked_to_end.set()

    async def main_loop(self) -> None:
        # uvicorn's own looks ten times a second whether it should end, for all of the daemon's life.
        await self._asked_to_end.wait()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().serve(sockets)
        finally:
            self.ended.set()


def digests(settings: Settings) -> dict[bytes, auth.Principal]:
    """Every key of the settings by its SHA-256."""
    found = {
        bytes.fromhex(key.sha256): auth.Principal(
            auth.Role(key.role),
            name,
            max_in_flight=key.max_in_flight,
            requests_per_minute=key.requests_per_minute,
        )
        for name, key in settings.keys.items()
    }
    if settings.auth.api_token is not None:
        token = settings.auth.api_token.get_secret_value()
        found[auth.digest(token)] = auth.Principal(auth.Role.ADMIN, "api_token")
    return found


def pool_options(settings: Settings, control_path: str) -> PoolOptions:
    return PoolOptions(
        callback_url=f"unix:{control_path}",
        ports=settings.workers.ports,
        worker_host=settings.workers.host,
        heartbeat_interval=settings.heartbeat.interval,
        stale_after=settings.heartbeat.stale_after,
        drain_timeout=settings.lifecycle.drain_timeout,
        term_grace=settings.lifecycle.term_grace,
        orphan_timeout=orphan_timeout(settings),
        prompt_cache_bytes=settings.workers.prompt_cache,
        engines=engines(settings),
        limits=limits(settings),
        processor=platform.machine(),
        hard_memory_limit=settings.limits.hard_memory_limit,
        health_timeout=settings.monitor.health_timeout,
        leaves_workers=settings.lifecycle.on_shutdown == "leave",
        restart=RestartRules(**settings.restart.model_dump(exclude={"policy"})),
    )


def limits(settings: Settings) -> Limits:
    limits = settings.limits
    return Limits(
        limits.max_worker_memory,
        limits.min_free_memory,
        limits.min_free_vram,
        limits.min_free_disk,
        log_bytes=settings.log.max_bytes,
    )


def engines(settings: Settings) -> dict[str, EngineOptions]:
    return {
        name: EngineOptions(engine.command, engine.health_path, str(engine.python or ""))
        for name, engine in settings.engine.items()
    }


def monitor_options(settings: Settings) -> MonitorOptions:
    monitor, lifecycle = settings.monitor, settings.lifecycle
    return MonitorOptions(
        interval=monitor.interval,
        memory_interval=monitor.memory_interval,
        health_timeout=monitor.health_timeout,
        max_failures=monitor.max_failures,
        hang_timeout=monitor.hang_timeout,
        load_timeout=lifecycle.load_timeout,
        load_limit=lifecycle.load_limit,
        max_worker_memory=settings.limits.max_worker_memory,
        health_paths={name: engine.health_path for name, engine in settings.engine.items() if engine.command},
    )


def orphan_timeout(settings: Settings) -> float:
    """Seconds that a worker waits for a hive before it ends itself: long where it shall outlive this one."""
    lifecycle = settings.lifecycle
    return lifecycle.leave_timeout if lifecycle.on_shutdown == "leave" else lifecycle.orphan_timeout


def gateway_options(settings: Settings, control_path: str) -> GatewayOptions:
    gateway = settings.gateway
    return GatewayOptions(
        control_socket=control_path,
        descriptors=descriptors.limit(),
        allowed_hosts=settings.server.allowed_hosts,
        cors_origins=gateway.cors_origins,
        max_body=gateway.max_body,
        max_header=gateway.max_header,
        buffer_limit=gateway.buffer_limit,
        header_timeout=gateway.header_timeout,
        idle_timeout=gateway.idle_timeout,
        stall_timeout=gateway.stall_timeout,
        queue_limit=gateway.queue_limit,
        queue_timeout=gateway.queue_timeout,
        keepalive_after=gateway.keepalive_after,
        affinity=gateway.affinity,
    )


def defaults(settings: Settings) -> Defaults:
    """What a spawn gets where it says nothing, and what the settings say of the models that they name."""
    workers = settings.workers
    models = {
        name: Order(
            model_ref=model.ref,
            alias=model.alias,
            ctx_size=model.ctx_size,
            slots=model.slots,
            engine=model.engine,
            engine_args=model.engine_args,
            restart=Restart(model.restart) if model.restart else None,
            idle_timeout=model.idle_timeout,
        )
        for name, model in settings.model.items()
    }
    return Defaults(
        engine=workers.engine,
        ctx_size=workers.ctx_size,
        slots=workers.slots,
        restart=Restart(settings.restart.policy),
        models=models,
        kinds={name: kind_of(name, options) for name, options in engines(settings).items()},
    )


NOT_BUILT: Final = (
    "lifecycle.idle_timeout",
    "models.max_bytes",
    "models.hf_",
)
_NOT_BUILT_OF_A_TABLE: Final = {
    "model": ("pinned", "preload", "replicas"),
}


def without_effect(origins: Mapping[str, str]) -> Iterator[str]:
    """The settings that somebody gave and that no part of this version reads yet."""
    for key, origin in origins.items():
        section, last = key.partition(".")[0], key.rpartition(".")[2]
        if origin != "default" and (key.startswith(NOT_BUILT) or last in _NOT_BUILT_OF_A_TABLE.get(section, ())):
            yield key
