"""/v1/requests: which inference requests are under way, what the last ones took, and ending one."""

from typing import Annotated

from fastapi import APIRouter, Query

from rbee.control.context import Admin, Context, Here
from rbee.control.request_views import CancelAnswer, RequestList, RequestView, ended_view, underway_view
from rbee.core.usage import RequestState, Underway, Usage

router = APIRouter(prefix="/v1/requests", tags=["requests"], dependencies=[Admin])

MAX_LISTED = 10_000
Limit = Annotated[int, Query(ge=0, le=MAX_LISTED)]
Name = Annotated[str, Query(max_length=1024)]


@router.get("")
async def requests(
    here: Here, limit: Limit = MAX_LISTED, model: Name | None = None, state: RequestState | None = None
) -> RequestList:
    """Those under way first, in order of arrival; then the last 1,000 that have ended, the newest first.

    *model* may be any of a model's names. Prompts and answers are not kept, and not shown.
    """
    meant = None if model is None else {model} | {route.model_ref for route in here.routes.candidates(model)}
    return RequestList(requests=_listed(here, limit, meant, state))


def _listed(here: Context, limit: int, meant: set[str] | None, state: RequestState | None) -> list[RequestView]:
    def is_meant(request: Underway | Usage) -> bool:
        return meant is None or request.model in meant

    underway = [one for one in here.requests.underway() if is_meant(one) and state in (None, one.state)]
    views = [underway_view(one) for one in underway[:limit]]
    if state in (None, RequestState.FINISHED):
        ended = [one for one in here.requests.ended() if is_meant(one)]
        views += [ended_view(one) for one in ended[: limit - len(views)]]
    return views


@router.delete("/{request_id}", status_code=202)
async def cancel(request_id: str, here: Here) -> CancelAnswer:
    """End it: its worker stops, its client gets an error. Clients choose ids: all with this one are ended.

    404 for one that has ended already, and for one that nobody knows; ``details.ended`` says which.
    """
    return CancelAnswer(cancelled=[underway_view(one) for one in here.requests.cancel(request_id)])
