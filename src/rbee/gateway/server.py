"""The front door: accepts connections on port 9200, and keeps the time for all of them."""

import asyncio
import socket
from ssl import SSLContext
from typing import Final

import structlog

from rbee.core.auth import AuthPolicy
from rbee.core.errors import TooManyConnections
from rbee.core.routing import RouteTable
from rbee.core.usage import UsageSink
from rbee.gateway import crowd
from rbee.gateway.connection import ClientConnection
from rbee.gateway.door import FrontDoor
from rbee.gateway.exchange import now
from rbee.gateway.options import GatewayOptions

log = structlog.get_logger(__name__)

BACKLOG: Final = 4096
TICK_INTERVAL: Final = 0.25
"""Seconds between two looks at all deadlines; one timer for all connections costs less than one for each."""


CROWDED_RETRY_AFTER: Final = 1.0
"""Seconds; a connection becomes free with each answer."""

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
        self._longest_idle: list[ClientConnection] = []
        self._looked_for_idle = False
        self._ticking: asyncio.TimerHandle | None = None
        self._is_crowded = False
        self._empty = asyncio.Event()
        self._empty.set()

    async def serve(self, sock: socket.socket, ssl: SSLContext | None = None) -> None:
        """Start to accept on *sock*, which is bound and listens."""
        loop = asyncio.get_running_loop()
        # No connection is counted, or ticked, before its handshake is over: it has the time of a header.
        handshake = self.options.header_timeout if ssl else None
        server = await loop.create_server(
            self._accept, sock=sock, ssl=ssl, backlog=BACKLOG, ssl_handshake_timeout=handshake
        )
        self._servers.append(server)

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
        self.log.settle()
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
        capacity = self._capacity()
        has_room = len(self._connections) < capacity or self._end_idle()
        self._connections.add(connection)
        self._empty.clear()
        self._arm()
        if has_room:
            return
        self._complain(capacity)
        if len(self._connections) > capacity + crowd.TURNED_AWAY:
            connection.abort()
        else:
            message = f"{capacity} clients are connected at once already, and all of them are busy. Try again soon."
            connection.turn_away(TooManyConnections(message, retry_after=CROWDED_RETRY_AFTER))

    def _capacity(self) -> int:
        capacity = crowd.capacity(self.options.descriptors, len(self.routes.routes))
        self.pool.limit = capacity
        return capacity

    def _end_idle(self) -> bool:
        """End the connection that has been idle for longest; False where none has been for long enough."""
        time = now()
        if not self._looked_for_idle:
            # Once a tick: each look costs as much as there are connections.
            self._looked_for_idle = True
            found = [(idle, id(c), c) for c in self._connections if (idle := c.idle_for(time)) >= crowd.IDLE_FOR]
            self._longest_idle = [connection for _, _, connection in sorted(found)]
        while self._longest_idle:
            connection = self._longest_idle.pop()
            if connection.idle_for(time) >= crowd.IDLE_FOR:
                connection.leave()
                return True
        return False

    def _complain(self, capacity: int) -> None:
        if not self._is_crowded:
            log.warning("too_many_connections", capacity=capacity, descriptors=self.options.descriptors)
            self._is_crowded = True

    def _tick_crowd(self) -> None:
        self._looked_for_idle, self._longest_idle = False, []
        excess = len(self._connections) - self._capacity()
        self._is_crowded = self._is_crowded and excess >= 0
        # Workers have come since, which need descriptors, too.
        while excess > 0 and self._end_idle():
            excess -= 1

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
            self._tick_crowd()
            self.pool.sweep(time)
            self.log.settle()
        finally:
            if self._connections or len(self.pool):
                self._arm()
