"""/v1/requests: which inference requests are under way, what the last ones took, and ending one."""

from typing import Annotated, Final

import anyio.lowlevel
from fastapi import APIRouter, Query, Response
from pydantic import TypeAdapter

from rbee.control.context import Admin, Context, Here
from rbee.control.request_views import CancelAnswer, RequestList, RequestView, ended_view, underway_view
from rbee.core.usage import RequestState, Underway, Usage

router = APIRouter(prefix="/v1/requests", tags=["requests"], dependencies=[Admin])

MAX_LISTED: Final = 10_000
SLICE: Final = 200
"""Requests that are written at a time, for 2 ms: a thousand of them at once would hold up every stream for 15."""

_VIEWS: Final = TypeAdapter(list[RequestView])

Limit = Annotated[int, Query(ge=0, le=MAX_LISTED)]
Name = Annotated[str, Query(max_length=1024)]


@router.get("", response_model=RequestList)
async def requests(
    here: Here, limit: Limit = MAX_LISTED, model: Name | None = None, state: RequestState | None = None
) -> Response:
    """Those under way first, in order of arrival; then the last 1,000 that have ended, the newest first.

    *model* may be any of a model's names. Prompts and answers are not kept, and not shown.
    """
    meant = None if model is None else {model} | {route.model_ref for route in here.routes.candidates(model)}
    found = _found(here, meant, state)[:limit]
    parts = []
    for start in range(0, len(found), SLICE):
        views = [_view(request) for request in found[start : start + SLICE]]
        parts.append(_VIEWS.dump_json(views)[1:-1])
        await anyio.lowlevel.checkpoint()
    return Response(b'{"requests":[%b]}' % b",".join(parts), media_type="application/json")


def _found(here: Context, models: set[str] | None, state: RequestState | None) -> list[Underway | Usage]:
    found: list[Underway | Usage] = []
    if state is not RequestState.FINISHED:
        found += [request for request in here.requests.underway() if state in (None, request.state)]
    if state in (None, RequestState.FINISHED):
        found += here.requests.ended()
    return found if models is None else [request for request in found if request.model in models]


def _view(request: Underway | Usage) -> RequestView:
    return ended_view(request) if isinstance(request, Usage) else underway_view(request)


# A path: what has a slash in it is no request either, and not a call that we do not have.
@router.delete("/{request_id:path}", status_code=202)
async def cancel(request_id: str, here: Here) -> CancelAnswer:
    """End it: its worker stops, its client gets an error. Clients choose ids: all with this one are ended.

    404 for one that has ended already, and for one that nobody knows; ``details.ended`` says which.
    """
    return CancelAnswer(cancelled=[underway_view(one) for one in here.requests.cancel(request_id)])
