"""What happens to a request, decided from its head: let in or refused, answered here or relayed, and to whom."""

import json
from collections.abc import Callable
from typing import Final

from rbee.core.addresses import MAX_CONTROL_BODY_BYTES
from rbee.core.affinity import PrefixBook
from rbee.core.auth import Action, AuthPolicy, Principal, presented_key, require, require_known, resolve
from rbee.core.errors import BodyTooLarge, MethodNotAllowed, ShuttingDown
from rbee.core.queueing import WaitingRoom
from rbee.core.routing import Route, RouteTable, Standing
from rbee.core.usage import UsageSink
from rbee.gateway import fence
from rbee.gateway.buffer import Buffer
from rbee.gateway.endpoints import BODYLESS, HEALTH, INFERENCE
from rbee.gateway.exchange import ControlRelay, OwnAnswer, control_unavailable
from rbee.gateway.head import RequestHead
from rbee.gateway.inference import Inference
from rbee.gateway.options import GatewayOptions
from rbee.gateway.pool import Pool
from rbee.gateway.ports import Client, Exchange
from rbee.gateway.quota import Quotas
from rbee.gateway.request_log import RequestLog

RETRY_AFTER: Final = 5.0
"""Seconds; a hive that stops may be started again."""

_METHODS: Final = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE"))
"""What the control API is asked with: its parser calls a method that it does not know an invalid request, in no shape
of ours, and ends the connection."""


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "surrogateescape")


class FrontDoor:
    """The gateway without its sockets.

    ``control_up`` is set by the daemon when the control API serves its socket; ``ready_problem`` says why the
    hive is not ready (None: it is); ``adopting`` is set to False when the hive knows all its workers.
    """

    def __init__(
        self,
        options: GatewayOptions,
        routes: RouteTable,
        auth: AuthPolicy,
        usage: UsageSink,
        version: str,
    ) -> None:
        self.options = options
        self.routes = routes
        self.auth = auth
        self.version = version
        self.pool = Pool()
        self.room: WaitingRoom[Inference] = WaitingRoom(options.queue_limit, routes.slots_of)
        self.prefixes = PrefixBook() if options.affinity else None
        self.buffer = Buffer(options.buffer_limit)
        self.log = RequestLog(usage)
        self.quotas = Quotas()
        self.control_up = False
        self.ready_problem: Callable[[], str | None] = lambda: "starting"
        self._closing = False
        self._adopting = True
        routes.subscribe(self._on_routes_changed)
        routes.subscribe_releases(self._on_released)

    def admit(self, head: RequestHead, client: Client, request_id: str) -> Exchange:
        """The exchange that answers this request. Raises RequestError for one that is refused."""
        fence.check_host(head, self.options.allowed_hosts)
        client.origin = fence.check_origin(head, self.options.cors_origins)
        is_preflight = fence.is_preflight(head, client.origin)
        if head.has_body and (is_preflight or head.path in BODYLESS):
            raise BodyTooLarge("This request takes no body.")
        if is_preflight:
            return OwnAnswer(client, 204, fence.preflight_headers(head), b"")
        if head.path in HEALTH:
            return self._health(head, client)
        if head.path in INFERENCE:
            return self._inference(head, client, request_id)
        return self._control(head, client, request_id)

    def _inference(self, head: RequestHead, client: Client, request_id: str) -> Inference:
        if head.method != b"POST":
            raise MethodNotAllowed("This path takes POST.", allow="POST")
        principal = self._principal(head)
        require(principal, Action.INFER)
        fence.check_content_type(head)
        head.principal = principal
        self.check_open()
        return self.admit_again(head, client, request_id)

    def admit_again(self, head: RequestHead, client: Client, request_id: str) -> Inference:
        """The exchange for another request with a head that was let in to a model already (it has a principal)."""
        assert head.principal is not None
        return Inference(self, client, head, request_id, head.principal)

    def check_open(self) -> None:
        """Raise ShuttingDown where the hive stops."""
        if self._closing:
            raise _shutting_down()

    def _principal(self, head: RequestHead) -> Principal:
        key = presented_key(_text(head.fields.get(b"authorization")), _text(head.fields.get(b"x-api-key")))
        return resolve(self.auth, key)

    def _control(self, head: RequestHead, client: Client, request_id: str) -> ControlRelay:
        # Strangers are refused by their head: a body would take room before the control API could ask for a key.
        if head.path not in BODYLESS:
            require_known(self._principal(head))
        if head.method not in _METHODS:
            method = head.method.decode("ascii")
            raise MethodNotAllowed(f"The method '{method}' is not known here.", allow="GET, POST, DELETE")
        fence.check_content_type(head)
        if not self.control_up:
            raise control_unavailable()
        return ControlRelay(self.pool, client, head, self.options.control_socket, request_id)

    def check_size(self, head: RequestHead, size: int) -> None:
        """Raise BodyTooLarge where this request may not have a body of *size* bytes."""
        if head.path in INFERENCE:
            if size > self.options.max_body:
                raise BodyTooLarge(f"The body is larger than {self.options.max_body} bytes (gateway.max_body).")
        elif size > min(MAX_CONTROL_BODY_BYTES, self.options.max_body):
            raise BodyTooLarge(f"The body of a control request may have at most {MAX_CONTROL_BODY_BYTES} bytes.")

    def _health(self, head: RequestHead, client: Client) -> OwnAnswer:
        if head.method not in (b"GET", b"HEAD"):
            raise MethodNotAllowed("This path takes GET and HEAD.", allow="GET, HEAD")
        status, value = 200, {"status": "alive"}
        if head.path == b"/readyz":
            problem = "shutting down" if self._closing else self.ready_problem()
            status, value = (
                (200, {"status": "ready"}) if problem is None else (503, {"status": "not_ready", "reason": problem})
            )
        elif head.path == b"/v1/health":
            value = {"status": "alive", "version": self.version, "api_version": "v1"}
        fields = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
        return OwnAnswer(client, status, fields, json.dumps(value).encode())

    @property
    def closing(self) -> bool:
        """The hive stops: inference is refused (those who wait, too), control is still relayed."""
        return self._closing

    @closing.setter
    def closing(self, value: bool) -> None:
        self._closing = value
        if value:
            for request in self.room:
                try:
                    request.shut(_shutting_down())
                except Exception:  # one request's error must not cost the others theirs
                    request.broken()

    @property
    def adopting(self) -> bool:
        """The hive does not know all its workers yet: a request for a name that nobody knows waits for one."""
        return self._adopting

    @adopting.setter
    def adopting(self, value: bool) -> None:
        self._adopting = value
        if not value:
            self._wake_all()

    def _on_routes_changed(self) -> None:
        routes = list(self.routes)
        self.pool.retain(
            ready={(route.host, route.port) for route in routes if route.standing is Standing.READY},
            known={(route.host, route.port) for route in routes},
        )
        self._wake_all()

    def _on_released(self, worker_id: str) -> None:
        if not self.room:
            return
        route = self.routes.routes.get(worker_id)
        if route is not None and route.standing is Standing.READY:
            self._fill(route)

    def _fill(self, route: Route) -> None:
        """Its free slots go to those who have waited for them longest."""
        while route.has_free_slot and (request := self.room.first_for(route)) is not None:
            _wake(request)
            if self.room.first_for(route) is request:
                return

    def wake_rested(self, now: float) -> None:
        """Those whose pause after a failure is over go on in their order, not in that of the ticks."""
        for request in self.room:
            if request.ends_rest(now):
                _wake(request)

    def _wake_all(self) -> None:
        for request in self.room:
            _wake(request)

    def model_names(self, limit: int) -> list[str]:
        """The names that can be asked for now, each model's shortest one, at most *limit*."""
        names = dict.fromkeys(route.short_name for route in self.routes if route.standing is not Standing.OUT)
        return list(names)[:limit]

    def waiting(self) -> dict[str, int]:
        """How many requests wait, by model reference."""
        return {route.model_ref: 0 for route in self.routes} | self.room.depths()

    def in_flight(self) -> dict[str, int]:
        """How many requests workers have, by model reference."""
        counts: dict[str, int] = {}
        for route in self.routes:
            counts[route.model_ref] = counts.get(route.model_ref, 0) + route.in_flight
        return counts


def _wake(request: Inference) -> None:
    try:
        request.wake()
    except Exception:  # one request's error is not that of who calls: another request, or the hive
        request.broken()


def _shutting_down() -> ShuttingDown:
    return ShuttingDown("This server is shutting down. Try again in a moment.", retry_after=RETRY_AFTER)
