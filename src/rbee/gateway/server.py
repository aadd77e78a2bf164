"""The front door: accepts connections on port 9200, and keeps the time for all of them."""

import asyncio
import socket
from ssl import SSLContext
from typing import Final

import structlog

from rbee.core.auth import AuthPolicy
from rbee.core.routing import RouteTable
from rbee.core.usage import UsageSink
from rbee.gateway.connection import ClientConnection
from rbee.gateway.door import FrontDoor
from rbee.gateway.exchange import now
from rbee.gateway.options import GatewayOptions

log = structlog.get_logger(__name__)

BACKLOG: Final = 4096
TICK_INTERVAL: Final = 0.25
"""Seconds between two looks at all deadlines; one timer for all connections costs less than one for each."""


ABORT_LIMIT: Final = 2.0
"""Seconds; the loop tells an aborted connection's end in its next round."""


class _Connection(ClientConnection, asyncio.Protocol):  # type: ignore[misc]
    """ClientConnection as asyncio wants to see it."""


class Gateway(FrontDoor):
    """Accepts on sockets that others have bound, and serves until ``close``. Lives on one running loop."""

    def __init__(
        self, options: GatewayOptions, routes: RouteTable, auth: AuthPolicy, usage: UsageSink, version: str
    ) -> None:
        super().__init__(options, routes, auth, usage, version)
        self._servers: list[asyncio.Server] = []
        self._connections: set[ClientConnection] = set()
        self._ticking: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    async def serve(self, sock: socket.socket, ssl: SSLContext | None = None) -> None:
        """Start to accept on *sock*, which is bound and listens."""
        loop = asyncio.get_running_loop()
        self._servers.append(await loop.create_server(self._accept, sock=sock, ssl=ssl, backlog=BACKLOG))

    def stop_accepting(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109 - a budget that ends in an abort, not an error
        """Accept no more, end idle connections, wait at most *timeout* seconds for busy ones, then abort them."""
        self.stop_accepting()
        for connection in list(self._connections):
            connection.leave()
        try:
            async with asyncio.timeout(timeout):
                await self._empty.wait()
        except TimeoutError:
            for connection in list(self._connections):
                connection.abort()
            await self._await_aborted()
        self.pool.close()
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None

    async def _await_aborted(self) -> None:
        try:
            async with asyncio.timeout(ABORT_LIMIT):
                await self._empty.wait()
        except TimeoutError:
            log.error("connections_left", count=len(self._connections))  # noqa: TRY400 - the trace tells nothing

    def _accept(self) -> asyncio.Protocol:
        return _Connection(self, self._joined, self._left)

    def _joined(self, connection: ClientConnection) -> None:
        self._connections.add(connection)
        self._empty.clear()
        self._arm()

    def _left(self, connection: ClientConnection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    def _arm(self) -> None:
        if self._ticking is None:
            self._ticking = asyncio.get_running_loop().call_later(TICK_INTERVAL, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        time = now()
        try:
            for connection in list(self._connections):
                connection.tick(time)
            self.pool.sweep(time)
        finally:
            if self._connections or len(self.pool):
                self._arm()
