"""What workers call: ready and heartbeat. Only a worker's own token, or an admin's, may speak for it."""

from fastapi import APIRouter

from rbee.control.context import Here, Speaker
from rbee.control.schemas import HeartbeatAnswer, HeartbeatRequest, ReadyAnswer, ReadyRequest
from rbee.core import auth
from rbee.core.launch import Telemetry
from rbee.hive.heartbeats import check_incarnation

router = APIRouter(prefix="/v1", tags=["callbacks"])


@router.post("/workers/ready")
async def ready(body: ReadyRequest, principal: Speaker, here: Here) -> ReadyAnswer:
    """A worker says that it loads, is ready or failed. One that is not known and comes from an admin is registered."""
    record = await here.reception.announce(principal, body.announcement())
    return ReadyAnswer(
        message=f"Worker registered as {body.state}",
        engine_key=here.pool.engine_key(record.worker),
        heartbeat_interval=here.heartbeat_interval,
        orphan_timeout=here.orphan_timeout,
    )


@router.post("/heartbeat")
async def heartbeat(body: HeartbeatRequest, principal: Speaker, here: Here) -> HeartbeatAnswer:
    """A worker lives. 404 for one that is not known: it announces itself again."""
    if principal.role is auth.Role.WORKER:
        auth.require_voice_of(principal, body.worker_id, external=False)
    record = here.registry.get(body.worker_id)
    auth.require_voice_of(principal, body.worker_id, external=record.worker.spec.external)
    if principal.role is auth.Role.WORKER:
        check_incarnation(record, principal.incarnation)
    telemetry = body.telemetry.telemetry() if body.telemetry else Telemetry()
    here.heartbeats.beat(record, body.incarnation, body.health_status == "healthy", telemetry)
    return HeartbeatAnswer(message="Heartbeat received", orphan_timeout=here.orphan_timeout)
