"""What the routers work with, handed in by daemon.py, and who is calling them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Protocol, cast

from fastapi import Depends, Request

from rbee.control.guard import CALLER
from rbee.core import auth
from rbee.core.admission import Limits
from rbee.core.routing import RouteTable
from rbee.core.usage import Underway, Usage
from rbee.hive.heartbeats import Heartbeats
from rbee.hive.orders import Defaults
from rbee.hive.pool import Pool
from rbee.hive.ports import Node
from rbee.hive.reception import Reception
from rbee.hive.registry import Registry


@dataclass(frozen=True, slots=True)
class Page:
    """One scrape: the text and the content type that it is in."""

    body: bytes
    content_type: str


class Requests(Protocol):
    """The inference requests that pass through the gateway."""

    def underway(self) -> list[Underway]:
        """In order of arrival."""

    def ended(self) -> list[Usage]:
        """The last ones, the newest first."""

    def cancel(self, request_id: str) -> list[Underway]:
        """End all with this id; gives what they were. Raises RequestNotFound where none is under way."""


@dataclass(frozen=True, slots=True)
class Context:
    pool: Pool
    reception: Reception
    registry: Registry
    heartbeats: Heartbeats
    routes: RouteTable
    requests: Requests
    node: Node
    policy: auth.AuthPolicy
    defaults: Defaults
    limits: Limits
    metrics_page: Callable[[str], Page]
    heartbeat_interval: float
    orphan_timeout: float


def context_of(request: Request) -> Context:
    return cast(Context, request.app.state.context)


# FastAPI calls plain functions in a thread, of which there is a limited number: a beat must not wait for one.


async def here(request: Request) -> Context:
    return context_of(request)


async def caller(request: Request) -> auth.Principal:
    """Who is calling, as the guard found by the key; a header that claims to know is never believed."""
    return cast(auth.Principal, request.scope[CALLER])


async def may_control(principal: Annotated[auth.Principal, Depends(caller)]) -> auth.Principal:
    auth.require(principal, auth.Action.CONTROL)
    return principal


async def may_announce(principal: Annotated[auth.Principal, Depends(caller)]) -> auth.Principal:
    auth.require(principal, auth.Action.ANNOUNCE)
    return principal


Here = Annotated[Context, Depends(here)]
Caller = Annotated[auth.Principal, Depends(caller)]
Admin = Depends(may_control)
Speaker = Annotated[auth.Principal, Depends(may_announce)]
