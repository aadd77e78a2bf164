"""What one incarnation is started with: port, keys, limits; and whether a stored one answers to its key."""

import anyio

from rbee.core import auth
from rbee.core.engine_args import LLAMA_CPP
from rbee.core.errors import NoPortLeft
from rbee.core.launch import EngineOptions, Launch, StoredWorker, first_free, kind_of, served_names
from rbee.core.routing import RouteTable
from rbee.core.worker import Worker, WorkerSpec
from rbee.hive.admissions import Admissions
from rbee.hive.options import Adapters, PoolOptions
from rbee.hive.registry import Record, Registry


class Launching:
    def __init__(
        self,
        options: PoolOptions,
        adapters: Adapters,
        registry: Registry,
        routes: RouteTable,
        policy: auth.AuthPolicy,
        admissions: Admissions,
    ) -> None:
        self._options = options
        self._adapters = adapters
        self._registry = registry
        self._routes = routes
        self._policy = policy
        self._admissions = admissions

    async def launch(self, record: Record) -> Launch:
        """All that a node needs to start a worker. Raises RequestError where its model, or a port, is not to be had."""
        spec, options = record.worker.spec, self._options
        # One that was taken over and has never said where it serves.
        record.port = record.port or self.free_port()
        model = await self._admissions.model_to_load(record)
        return Launch(
            spec=spec,
            incarnation=record.worker.incarnation,
            port=record.port,
            port_last=options.ports.stop - 1,
            model_path=model.path,
            token=auth.worker_token(self._policy.worker_secret, spec.worker_id, record.worker.incarnation),
            host=options.worker_host,
            callback_url=options.callback_url,
            heartbeat_interval=options.heartbeat_interval,
            orphan_timeout=options.orphan_timeout,
            # The hive has drained it already when it signals, so the keeper waits for little more than nothing.
            drain_timeout=options.term_grace / 2,
            end_timeout=options.term_grace,
            prompt_cache_bytes=options.prompt_cache_bytes,
            engine=self._engine(spec),
            placement=record.placement,
            device_uuids=self._admissions.uuids(record.placement),
            memory_limit_bytes=self._hard_limit(spec),
            added_engine_args=model.added_engine_args,
        )

    def _hard_limit(self, spec: WorkerSpec) -> int | None:
        if not self._options.hard_memory_limit:
            return None
        return spec.memory_limit(self._options.limits.max_worker_memory)

    def _engine(self, spec: WorkerSpec) -> EngineOptions:
        return self._options.engines.get(spec.engine, EngineOptions())

    def served(self, record: Record) -> tuple[str, ...]:
        """The names by which the worker's engine knows its model; empty: any will do."""
        spec = record.worker.spec
        return served_names(spec, self._engine(spec), record.model_path)

    def folds(self, record: Record) -> bool:
        """Whether a client that leaves early is noticed by its engine in a stream alone: llama.cpp's is that way."""
        spec = record.worker.spec
        return not spec.external and kind_of(spec.engine, self._engine(spec)) == LLAMA_CPP

    def free_port(self) -> int:
        """A port of the range that nobody has. Raises NoPortLeft."""
        ports = self._options.ports
        taken = {record.port for record in self._registry}
        taken |= {r.port for r in self._routes if r.port}
        while (port := first_free(ports, taken)) is not None:
            if self._adapters.node.port_is_free(self._options.worker_host, port):
                return port
            taken.add(port)
        raise NoPortLeft(
            f"No port is free in {ports.start}-{ports.stop - 1}; widen workers.port_range or stop a worker."
        )

    def engine_key(self, worker: Worker) -> str:
        """The key that this incarnation's own server demands."""
        incarnation = 0 if worker.spec.external else worker.incarnation
        return auth.engine_key(self._policy.worker_secret, worker.spec.worker_id, incarnation)

    async def answers(self, row: StoredWorker) -> bool:
        """Whether the server of a stored worker answers to the key that only its own incarnation takes."""
        key = auth.engine_key(self._policy.worker_secret, row.spec.worker_id, row.incarnation)
        engine = self._options.engines.get(row.spec.engine)
        path = engine.health_path if engine is not None and engine.command else "/v1/models"
        try:
            with anyio.fail_after(self._options.health_timeout):
                reply = await self._adapters.probe.get(row.url, path, key)
        except (OSError, TimeoutError):
            return False
        # A server of llama.cpp's kind lists its worker's id, so a stranger that answers to any key is found out.
        is_named = row.spec.worker_id.encode() in reply.body
        return reply.status == 200 and (is_named or path != "/v1/models")
