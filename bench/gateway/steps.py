"""The gateway's own steps for a request and for a chunk, without sockets: what Python takes while its code is hot."""

import asyncio
from collections.abc import Callable
from time import process_time
from typing import Final, cast

from bench.gateway import payloads
from rbee.core.auth import AuthPolicy, Principal, Role, digest
from rbee.core.routing import Route, RouteTable, Standing
from rbee.gateway.connection import ClientConnection
from rbee.gateway.door import FrontDoor
from rbee.gateway.options import GatewayOptions
from rbee.gateway.ports import Transport
from rbee.gateway.upstream import Upstream
from rbee.observability.metrics import Metrics

TIMES: Final = 20_000
WARM_UP: Final = 500


class _Nowhere:
    """A transport whose other side takes everything."""

    def write(self, data: bytes) -> None: ...
    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0


def steps(workers: int) -> tuple[float, float]:
    """Microseconds for a JSON request, and for a chunk of a stream, with so many workers of the model."""
    return asyncio.run(_steps(workers))


async def _steps(workers: int) -> tuple[float, float]:
    routes = RouteTable()
    keys = AuthPolicy({digest(payloads.KEY): Principal(Role.CLIENT, "bench")}, b"secret")
    door = FrontDoor(GatewayOptions(""), routes, keys, Metrics("bench").used, "bench")
    door.adopting = False
    for number in range(workers):
        worker = f"w-{number}"
        routes.publish(Route(worker, "synthetic:stub", payloads.MODEL, Standing.READY, "127.0.0.1", 1, "key", 64))
    client = ClientConnection(door, lambda _: None, lambda _: None)
    client.connection_made(cast(Transport, _Nowhere()))
    upstream = Upstream(door.pool, ("127.0.0.1", 1))
    # As one that has connected, and is kept: the workers share it, since nobody looks where it leads.
    upstream._transport = cast(asyncio.Transport, _Nowhere())
    request, answer = payloads.request(9200), payloads.completion()

    def ask() -> None:
        client.data_received(request)
        upstream.data_received(answer)

    door.pool.keep(upstream)
    each = _micros(ask)
    client.data_received(payloads.request(9200, chunks=9))
    upstream.data_received(payloads.stream_head())
    chunk = payloads.stream_chunk()
    return each, _micros(lambda: upstream.data_received(chunk))


def _micros(step: Callable[[], None]) -> float:
    for _ in range(WARM_UP):
        step()
    begin = process_time()
    for _ in range(TIMES):
        step()
    return (process_time() - begin) / TIMES * 1e6
