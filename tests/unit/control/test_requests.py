"""GET /v1/requests and DELETE /v1/requests/{id}, asked without HTTP."""

import json
from types import SimpleNamespace

import pytest

from rbee.control import requests
from rbee.core.errors import RequestNotFound
from rbee.core.routing import Route, RouteTable
from rbee.core.usage import RequestState, Underway, Usage

pytestmark = pytest.mark.anyio
STARTED = 1_764_000_000.25


def underway(request_id, model="synthetic:a", state=RequestState.RUNNING):
    return Underway(request_id, model, "w1", "/v1/completions", True, "web", STARTED, state, 3.0, 1.0, 2.0)


def ended(request_id, model="synthetic:a", **changes):
    usage = Usage(
        request_id, model, "w1", "/v1/completions", 200, True, 0.5, 1.0, 3.0, 0.0001, 7, 40, 2, 20.0, "stop", "web"
    )
    return usage._replace(started_at=STARTED, **changes)


class FakeRequests:
    def __init__(self, underway=(), ended=()):
        self._underway, self._ended = list(underway), list(ended)

    def underway(self):
        return self._underway

    def ended(self):
        return self._ended

    def cancel(self, request_id):
        found = [request for request in self._underway if request.request_id == request_id]
        if not found:
            raise RequestNotFound("There is none.", ended=False)
        return found


def here(underway=(), ended=()):
    routes = RouteTable()
    routes.publish(Route("w1", "synthetic:a", alias="chat"))
    return SimpleNamespace(requests=FakeRequests(underway, ended), routes=routes)


async def listed(context, **query):
    answer = await requests.requests(context, **query)
    return json.loads(answer.body)["requests"]


async def ids(context, **query):
    return [row["request_id"] for row in await listed(context, **query)]


async def test_those_under_way_come_first():
    context = here([underway("a"), underway("b")], [ended("c"), ended("d")])
    assert await ids(context) == ["a", "b", "c", "d"]
    assert await ids(context, limit=3) == ["a", "b", "c"]
    assert await ids(context, limit=0) == []


async def test_every_number_of_one_that_has_ended_is_shown():
    assert await listed(here(ended=[ended("c")])) == [
        {
            "request_id": "c",
            "state": "finished",
            "model": "synthetic:a",
            "worker_id": "w1",
            "endpoint": "/v1/completions",
            "stream": True,
            "key": "web",
            "started_at": "2025-11-24T16:00:00.250000Z",
            "duration_seconds": 3.0,
            "queue_seconds": 0.5,
            "first_byte_seconds": 1.0,
            "overhead_seconds": 0.0001,
            "status": 200,
            "cancelled": False,
            "error": None,
            "prompt_tokens": 7,
            "generated_tokens": 40,
            "cached_tokens": 2,
            "tokens_per_second": 20.0,
            "finish_reason": "stop",
        }
    ]


async def test_of_one_under_way_nothing_is_told_that_is_not_known_yet():
    (row,) = await listed(here([underway("a", state=RequestState.WAITING)]))
    assert (row["state"], row["duration_seconds"], row["queue_seconds"]) == ("waiting", 3.0, 1.0)
    unknown = ("status", "prompt_tokens", "generated_tokens", "tokens_per_second", "finish_reason", "overhead_seconds")
    assert [row[name] for name in unknown] == [None] * len(unknown)


async def test_they_can_be_chosen_by_state():
    waiting = underway("a", state=RequestState.WAITING)
    context = here([waiting, underway("b")], [ended("c")])
    found = {state: await ids(context, state=state) for state in RequestState}
    assert found == {RequestState.WAITING: ["a"], RequestState.RUNNING: ["b"], RequestState.FINISHED: ["c"]}


@pytest.mark.parametrize("name", ["synthetic:a", "chat", "w1"])
async def test_they_can_be_chosen_by_every_name_of_their_model(name):
    context = here([underway("a"), underway("b", "synthetic:b")], [ended("c"), ended("d", "other")])
    assert await ids(context, model=name) == ["a", "c"]
    assert await ids(context, model="synthetic:b") == ["b"]


async def test_long_list_is_whole():
    context = here([underway(str(number)) for number in range(450)], [ended(str(number)) for number in range(1000)])
    assert await ids(context) == [*map(str, range(450)), *map(str, range(1000))]


async def test_cancelling_tells_what_was_cancelled():
    context = here([underway("a"), underway("b")])
    answer = await requests.cancel("b", context)
    assert [view.request_id for view in answer.cancelled] == ["b"]
    with pytest.raises(RequestNotFound):
        await requests.cancel("c", context)
