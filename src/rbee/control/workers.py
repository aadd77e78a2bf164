"""/v1/workers: start, see and end workers."""

from collections.abc import AsyncIterator
from typing import Annotated

import anyio
from fastapi import APIRouter, Query, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from fastapi.sse import EventSourceResponse, format_sse_event

from rbee.control.context import Admin, Context, Here
from rbee.control.schemas import SpawnAnswer, SpawnRequest, WorkerList, WorkerView
from rbee.control.views import worker_view
from rbee.core.addresses import base_url
from rbee.core.errors import ControlUnavailable, IllegalTransition
from rbee.hive.orders import specify
from rbee.hive.registry import Record
from rbee.nodes.logs import MAX_LINES

router = APIRouter(prefix="/v1/workers", tags=["workers"], dependencies=[Admin])

Tail = Annotated[int, Query(ge=0, le=MAX_LINES)]


@router.post("/spawn")
async def spawn(body: SpawnRequest, here: Here) -> SpawnAnswer:
    """Start a worker. The answer comes at once; the model may load for minutes: watch the state, or /v1/events."""
    record = await here.pool.spawn(specify(body.order(), here.defaults))
    url = record.worker.url or base_url(here.pool.worker_host, record.port)
    return SpawnAnswer(worker_id=record.worker_id, url=url, state=_state(here, record))


@router.get("")
async def workers(here: Here) -> WorkerList:
    """Every worker there is, failed ones included."""
    return WorkerList(workers=[_view(here, record) for record in here.registry])


@router.get("/{worker_id}")
async def worker(worker_id: str, here: Here) -> WorkerView:
    """One worker. 404 where there is none."""
    return _view(here, here.registry.get(worker_id))


@router.delete("/{worker_id}", status_code=202)
async def delete(worker_id: str, here: Here, force: bool = False) -> WorkerView:
    """Let its requests end, then end it; with ``force`` at once. It is gone once GET answers 404."""
    return _view(here, await here.pool.delete(worker_id, force=force))


@router.post("/{worker_id}/restart", status_code=202)
async def restart(worker_id: str, here: Here) -> WorkerView:
    """End it if it runs, and start it anew. 409 for one that was started by hand, and for one that is being ended."""
    worker = here.registry.get(worker_id).worker
    if worker.spec.external:
        message = f"Worker '{worker_id}' was started by hand, not by this hive; restart it where it was started."
        raise IllegalTransition(message, state=str(worker.state))
    return _view(here, await here.pool.restart(worker_id))


@router.get("/{worker_id}/logs", response_class=PlainTextResponse)
async def logs(worker_id: str, here: Here, tail: Tail = 200, follow: bool = False) -> Response:
    """The last *tail* lines of its newest log; with ``follow`` an event stream, one event a line."""
    here.registry.get(worker_id)
    if follow:
        return StreamingResponse(_events(here.node.follow(worker_id, tail)), media_type=EventSourceResponse.media_type)
    try:
        lines = await here.node.tail(worker_id, tail)
    except OSError as error:
        raise ControlUnavailable(f"The log of '{worker_id}' cannot be read now: {error}.") from error
    return PlainTextResponse("".join(f"{line}\n" for line in lines))


async def _events(lines: AsyncIterator[str]) -> AsyncIterator[bytes]:
    async for line in lines:
        yield format_sse_event(data_str=line)


def _state(here: Context, record: Record) -> str:
    return record.worker.shown_state(here.routes.in_flight(record.worker_id))


def _view(here: Context, record: Record) -> WorkerView:
    spec = record.worker.spec
    circuit = None if spec.external else here.pool.circuits.report_of(spec)
    return worker_view(record, here.routes.in_flight(record.worker_id), circuit, anyio.current_time())
