"""Takes what workers say when they call back: of the hive's own, of those started by hand, and of those it has lost."""

from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import anyio
import structlog

from rbee.core import auth, events, model_ref
from rbee.core.errors import AliasInUse, ControlUnavailable, Forbidden, InvalidField, OlderIncarnation, WorkerIdInUse
from rbee.core.launch import StoredWorker
from rbee.core.worker import Worker, WorkerSpec, WorkerState
from rbee.hive.announcements import Announcement, as_event, check_own_url, resolve_external_url
from rbee.hive.heartbeats import check_incarnation
from rbee.hive.pool import Pool
from rbee.hive.ports import Node
from rbee.hive.registry import Record, Registry

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ReceptionOptions:
    """``front_port`` is the hive's own port, where no worker can be."""

    allow_external: bool
    external_hosts: tuple[str, ...]
    front_port: int


class Reception:
    def __init__(self, options: ReceptionOptions, pool: Pool, registry: Registry, node: Node) -> None:
        self._options = options
        self._pool = pool
        self._registry = registry
        self._node = node

    async def announce(self, principal: auth.Principal, said: Announcement) -> Record:
        """A worker calls back: loading, ready or failed.

        Raises Unauthorized, Forbidden, OlderIncarnation, IllegalTransition, InvalidField; nothing changed then.
        """
        record = self._registry.find(said.worker_id)
        is_external = record is None or record.worker.spec.external
        auth.require_voice_of(principal, said.worker_id, external=is_external)
        if is_external and principal.role is auth.Role.WORKER:
            return await self._readmit(principal, said)
        if is_external:
            return await self._announce_external(said)
        assert record is not None, "one that is not external is registered"
        check_own_url(said.url, self._pool.worker_host)
        check_incarnation(record, said.incarnation)
        if principal.role is auth.Role.WORKER:
            check_incarnation(record, principal.incarnation)
        self._pool.take(said.worker_id, as_event(said))
        return record

    async def _readmit(self, principal: auth.Principal, said: Announcement) -> Record:
        """One of our own that no row tells of: its token is genuine, so this hive has lost what it knew of it."""
        incarnation = principal.incarnation
        if incarnation is None or said.state == "failed" or self._pool.has_ended(said.worker_id):
            raise OlderIncarnation(f"Worker '{said.worker_id}' has been ended; this process is no longer wanted.")
        check_own_url(said.url, self._pool.worker_host)
        spec = said.own_spec()
        self._pool.check_engine(spec)
        try:
            identity = await self._node.find_keeper(said.worker_id, incarnation)
        except OSError as error:
            raise ControlUnavailable(f"Processes cannot be looked at now ({error}). Announce it again.") from error
        if identity is None or identity.pid != said.pid:
            raise OlderIncarnation(f"No process {said.pid} carries the mark of worker '{said.worker_id}'.")
        claim = await self._pool.admissions.claim_as_placed(spec, said.placement())
        async with self._pool.admission() as admit:
            # Asked again: it may have called twice, or have been ended while it was looked for.
            if said.worker_id not in self._registry and not self._pool.has_ended(said.worker_id):
                log.warning("worker_without_row", worker_id=said.worker_id, pid=said.pid)
                worker = Worker(self._with_free_alias(spec), incarnation=incarnation, since=anyio.current_time())
                row = StoredWorker(spec, incarnation, identity, slots=said.slots_total)
                await admit(worker, urlsplit(said.url).port or 0, row, claim)
        return await self.announce(principal, said)

    def _with_free_alias(self, spec: WorkerSpec) -> WorkerSpec:
        """A name that was given to another model meanwhile is that one's; the worker is worth more than its alias."""
        try:
            self._pool.check_alias(spec)
        except (AliasInUse, InvalidField):
            return replace(spec, alias=None)
        return spec

    async def _announce_external(self, said: Announcement) -> Record:
        url = await resolve_external_url(said.url, self._options.external_hosts, self._options.front_port)
        said = replace(said, url=url)
        # Asked again: it may have been removed while its host was resolved.
        record = self._registry.find(said.worker_id)
        if record is not None and said.pid == record.worker.pid and not _is_back(record, said):
            self._pool.take(said.worker_id, as_event(said))
            return record
        if record is not None and said.state == "failed":
            raise OlderIncarnation(f"Worker '{said.worker_id}' is process {record.worker.pid} by now.")
        if record is not None:
            # It was ended and started again under the same id, before its deadline, or taken for dead wrongly.
            self._pool.take(said.worker_id, events.EndRequested(force=True))
        return await self._register_external(said)

    async def _register_external(self, said: Announcement) -> Record:
        if not self._options.allow_external:
            raise Forbidden("Workers started by hand are not accepted here; set workers.allow_external = true.")
        if said.state == "failed":
            raise InvalidField("A worker that failed cannot be registered.", field="state")
        model_ref.parse(said.model_ref)
        spec = said.spec()
        async with self._pool.admission() as admit:
            self._check_id(spec.worker_id)
            # One that was just removed is still being forgotten; its id is free after that.
            await self._pool.wait_gone(spec.worker_id)
            self._pool.check_alias(spec)
            state = WorkerState.LOADING if said.state == "loading" else WorkerState.READY
            worker = Worker(
                spec,
                state=state,
                incarnation=0,
                since=anyio.current_time(),
                message="Loading its model; requests for it wait." if said.state == "loading" else "Ready.",
                pid=said.pid,
                engine_pid=said.engine_pid,
                url=said.url,
                slots=said.slots_total,
            )
            return await admit(worker, 0, None, None)

    def _check_id(self, worker_id: str) -> None:
        if worker_id in self._registry or any(r.worker.spec.alias == worker_id for r in self._registry):
            raise WorkerIdInUse(f"The name '{worker_id}' is in use; choose another worker id.")


def _is_back(record: Record, said: Announcement) -> bool:
    """Whether a worker that was taken for dead says that it serves."""
    return record.worker.state is WorkerState.FAILED and said.state != "failed"
