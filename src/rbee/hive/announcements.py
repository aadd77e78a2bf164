"""What a worker says when it calls back, checked and turned into an event."""

import socket
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Literal
from urllib.parse import urlsplit

import anyio

from rbee.core.addresses import base_url
from rbee.core.claims import Placement
from rbee.core.errors import InvalidField
from rbee.core.events import AnnouncedFailed, AnnouncedLoading, AnnouncedReady
from rbee.core.worker import Restart, WorkerSpec


@dataclass(frozen=True, slots=True)
class Announcement:
    """The body of POST /v1/workers/ready."""

    worker_id: str
    state: Literal["loading", "ready", "failed"]
    url: str
    model_ref: str
    backend: str
    device: int
    pid: int
    slots_total: int
    incarnation: int | None = None
    engine_pid: int | None = None
    alias: str | None = None
    reason: str | None = None
    own: WorkerSpec | None = None
    """What the hive that started it said it is, where it was started by one; not the id, which is ``worker_id``."""

    def own_spec(self) -> WorkerSpec:
        """What one of our own workers is. One that cannot say all of it gets the defaults."""
        unknown = WorkerSpec(self.worker_id, self.model_ref, self.backend, self.device, restart=Restart.NEVER)
        return replace(
            self.own or unknown,
            worker_id=self.worker_id,
            model_ref=self.model_ref,
            alias=self.alias,
            slots=self.slots_total,
            external=False,
        )

    def placement(self) -> Placement:
        """Where it runs, as far as it tells."""
        return Placement() if self.backend == "cpu" else Placement(self.backend, (self.device,), (1.0,))

    def spec(self) -> WorkerSpec:
        """What a worker started by hand is, as far as it tells."""
        return WorkerSpec(
            worker_id=self.worker_id,
            model_ref=self.model_ref,
            backend=self.backend,
            device=self.device,
            engine="external",
            alias=self.alias,
            slots=self.slots_total,
            restart=Restart.NEVER,
            external=True,
        )


def as_event(said: Announcement) -> AnnouncedLoading | AnnouncedReady | AnnouncedFailed:
    match said.state:
        case "loading":
            return AnnouncedLoading(said.url, said.pid, said.engine_pid, said.slots_total)
        case "ready":
            return AnnouncedReady(said.url, said.pid, said.engine_pid, said.slots_total)
        case "failed":
            return AnnouncedFailed(said.reason or "it did not say why")


def check_own_url(url: str, worker_host: str) -> None:
    """Raise InvalidField unless *url* is plain HTTP where the hive has told its own workers to serve."""
    host, _ = _host_and_port(url)
    if host != worker_host and not is_on_loopback(url):
        raise InvalidField(
            f"A worker of this hive serves on {worker_host} or on loopback, not on '{host}'.", field="url"
        )


async def resolve_external_url(url: str, allowed: tuple[str, ...], front_port: int) -> str:
    """*url* with its host resolved, so that what was checked is what is called from now on.

    Raises InvalidField unless it is plain HTTP on loopback or on one of the *allowed* hosts, and for the hive itself
    (*front_port* on loopback): a request for such a worker would go round in circles.
    """
    host, port = _host_and_port(url)
    try:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InvalidField(f"The worker's url names the host '{host}', which has no address.", field="url") from error
    addresses = [ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if host not in allowed and not all(address.is_loopback for address in addresses):
        raise InvalidField(
            f"The worker's url names the host '{host}'. Only loopback is accepted; add it to workers.external_hosts.",
            field="url",
        )
    if port == front_port and any(address.is_loopback for address in addresses):
        raise InvalidField("The worker's url is the hive's own; name where the worker itself listens.", field="url")
    # IPv4 first: that is where an engine told to serve on "localhost" listens.
    first = min(addresses, key=lambda address: address.version)
    return base_url(str(first), port)


def is_on_loopback(url: str) -> bool:
    """Whether a url with a literal address is on this machine."""
    try:
        return ip_address(urlsplit(url).hostname or "").is_loopback
    except ValueError:
        return False


def _host_and_port(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme != "http" or not parts.hostname or not port or parts.path.strip("/") or parts.query:
        raise InvalidField("The worker's url must read http://host:port, nothing more.", field="url")
    return parts.hostname, port
