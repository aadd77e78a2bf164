"""Metrics, the journal as a stream, and OpenAI's list of models."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from rbee.control.context import Admin, Caller, Here
from rbee.control.schemas import ModelList, ModelView
from rbee.control.views import transition_view
from rbee.core import auth
from rbee.core.errors import InvalidField
from rbee.core.routing import Standing

router = APIRouter(tags=["system"])


@router.get("/metrics", response_class=Response)
async def metrics(request: Request, principal: Caller, here: Here) -> Response:
    """Prometheus text. Public unless ``auth.metrics_auth``; never wakes a model."""
    if here.policy.metrics_auth:
        auth.require(principal, auth.Action.SCRAPE)
    page = here.metrics_page(request.headers.get("accept", ""))
    return Response(page.body, media_type=page.content_type)


@router.get("/v1/events", dependencies=[Admin], response_class=EventSourceResponse)
async def events(here: Here, last_event_id: Annotated[str | None, Header()] = None) -> AsyncIterator[ServerSentEvent]:
    """The journal: what is kept after ``Last-Event-ID`` (without one: from now on), then each new transition."""
    async for entry in here.pool.journal.follow(_number(last_event_id, here.pool.journal.last_number)):
        yield ServerSentEvent(data=transition_view(entry), event="transition", id=str(entry.number))


@router.get("/v1/models")
async def models(principal: Caller, here: Here) -> ModelList:
    """What can be asked for now, under every name that it has."""
    auth.require(principal, auth.Action.INFER)
    names: dict[str, int] = {}
    for route in here.routes:
        record = here.registry.find(route.worker_id)
        # By the standing that requests are routed by: what one of them would wait for is listed, too.
        if record is not None and route.standing is not Standing.OUT:
            created = int(record.started_at.timestamp())
            for name in (route.alias, route.model_ref):
                if name:
                    names[name] = min(names.get(name, created), created)
    return ModelList(data=[ModelView(id=name, created=when) for name, when in sorted(names.items())])


def _number(text: str | None, otherwise: int) -> int:
    if text is None:
        return otherwise
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InvalidField("Last-Event-ID must be the id of an event of this stream.", field="Last-Event-ID")
    return int(text)
