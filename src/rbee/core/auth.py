"""Key -> principal, and what a principal may do. The gateway and the control API both ask here, nobody else decides."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from rbee.core.errors import Forbidden, Unauthorized, UnsafeBind

MIN_TOKEN_LENGTH: Final = 16
_WORKER_PREFIX: Final = "rbee-worker"


class Role(StrEnum):
    ADMIN = "admin"
    CLIENT = "client"
    METRICS = "metrics"
    WORKER = "worker"
    ANONYMOUS = "anonymous"


class Action(StrEnum):
    INFER = "infer"
    """Ask a model, and list the models that can be asked."""
    CONTROL = "control"
    """See and change workers: everything that is not one of the others."""
    SCRAPE = "scrape"
    ANNOUNCE = "announce"
    """Say that a worker loads, is ready, failed or lives."""


_MAY: Final[Mapping[Role, frozenset[Action]]] = {
    Role.ADMIN: frozenset(Action),
    Role.CLIENT: frozenset({Action.INFER}),
    Role.METRICS: frozenset({Action.SCRAPE}),
    Role.WORKER: frozenset({Action.ANNOUNCE}),
    Role.ANONYMOUS: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling. ``name``: the key's name, the worker's id, or empty.

    ``trusted`` is false for the anonymous admin of a hive without keys: it may do what an admin may,
    but not speak for a worker that the hive itself started. ``max_in_flight`` and ``requests_per_minute``
    limit its inference; 0: no limit.
    """

    role: Role
    name: str = ""
    incarnation: int = 0
    trusted: bool = True
    max_in_flight: int = 0
    requests_per_minute: int = 0

    @property
    def is_limited(self) -> bool:
        return self.max_in_flight > 0 or self.requests_per_minute > 0

    def __str__(self) -> str:
        return f"{self.role}:{self.name}" if self.name else str(self.role)


ANYBODY: Final = Principal(Role.ADMIN, trusted=False)
"""Whoever asks a hive without keys."""
_NOBODY: Final = Principal(Role.ANONYMOUS)


@dataclass(frozen=True, slots=True)
class AuthPolicy:
    """What keys there are. ``digests`` maps a SHA-256 (32 bytes) to the principal that its key stands for."""

    digests: Mapping[bytes, Principal]
    worker_secret: bytes = field(repr=False)
    metrics_auth: bool = False

    @property
    def keys_required(self) -> bool:
        return bool(self.digests)


def digest(key: str) -> bytes:
    """SHA-256 of a key, 32 bytes: what we keep and compare instead of the key itself."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def worker_token(secret: bytes, worker_id: str, incarnation: int) -> str:
    """The token of one incarnation of one worker.

    HMAC-SHA256 (RFC 2104) over id and incarnation, so that it can be checked without a database.
    """
    mac = hmac.new(secret, f"{worker_id}\n{incarnation}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
    return f"{_WORKER_PREFIX}.{incarnation}.{mac}.{worker_id}"


def engine_key(secret: bytes, worker_id: str, incarnation: int) -> str:
    """The key that the worker's own server wants; only the gateway and that worker's keeper know it."""
    return hmac.new(
        secret, f"engine\n{worker_id}\n{incarnation}".encode("utf-8", "surrogatepass"), hashlib.sha256
    ).hexdigest()


def presented_key(authorization: str | None, x_api_key: str | None) -> str | None:
    """The key that a request brings, in either of the two usual headers; None without one.

    The scheme's case does not matter (RFC 9110 section 11.1); a bearer without a token counts as none.
    """
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return x_api_key


def resolve(policy: AuthPolicy, key: str | None) -> Principal:
    """Who holds *key* (None: no key was sent).

    Without any configured key everybody is an (untrusted) admin, whatever key a client library insists on
    sending. Raises Unauthorized for a worker token that is not genuine and, where keys are required, for
    any other key that nobody knows.
    """
    if key is not None and key.startswith(_WORKER_PREFIX + "."):
        return _resolve_worker(policy, key)
    if not policy.keys_required:
        return ANYBODY
    if key is None:
        return _NOBODY
    presented, found = digest(key), None
    for known, principal in policy.digests.items():
        # No early end: the time taken must not tell which key was nearly right.
        if hmac.compare_digest(known, presented):
            found = principal
    if found is None:
        raise Unauthorized("This key is not known here. Check the token (RBEE_API_TOKEN) that you send.")
    return found


def _resolve_worker(policy: AuthPolicy, key: str) -> Principal:
    parts = key.split(".", 3)
    if len(parts) == 4 and parts[1].isascii() and parts[1].isdigit() and len(parts[1]) <= 9:
        expected = worker_token(policy.worker_secret, parts[3], int(parts[1]))
        if hmac.compare_digest(expected.encode("utf-8", "surrogatepass"), key.encode("utf-8", "surrogatepass")):
            return Principal(Role.WORKER, parts[3], int(parts[1]))
    raise Unauthorized("This worker token was not issued by this hive.")


def require(principal: Principal, action: Action) -> None:
    """Raise Unauthorized or Forbidden unless *principal* may take *action*."""
    if action in _MAY[principal.role]:
        return
    require_known(principal)
    raise Forbidden(f"A key with the role '{principal.role}' may not do this; use an admin key.")


def require_known(principal: Principal) -> None:
    """Raise Unauthorized for somebody without a key, where there are keys."""
    if principal.role is Role.ANONYMOUS:
        raise Unauthorized("A token is needed: send 'Authorization: Bearer <token>' or 'x-api-key: <token>'.")


def require_voice_of(principal: Principal, worker_id: str, *, external: bool) -> None:
    """Raise Forbidden unless *principal* may speak for the worker: its own token, or an admin.

    The anonymous admin of a hive without keys may speak for external workers only: those that the hive
    started have a token of their own, and nobody else on the machine may pretend to be them.
    """
    require(principal, Action.ANNOUNCE)
    if principal.role is Role.WORKER and principal.name == worker_id:
        return
    if principal.role is Role.ADMIN and (principal.trusted or external):
        return
    raise Forbidden(f"Only the token of worker '{worker_id}' (or an admin's) may speak for it.")


def check_bind(host: str, *, is_loopback: bool, tokens: list[str], keys_required: bool) -> None:
    """Raise UnsafeBind where the daemon would be open to the network, or a token is too short to protect it."""
    for token in tokens:
        if len(token) < MIN_TOKEN_LENGTH:
            raise UnsafeBind(
                f"auth.api_token has {len(token)} characters; it must have at least {MIN_TOKEN_LENGTH}. "
                "Make one with: openssl rand -hex 24"
            )
    if not is_loopback and not keys_required:
        raise UnsafeBind(
            f"server.host is {host}, which others can reach, and no token is set. "
            "Set RBEE_API_TOKEN (16 characters at least) or bind 127.0.0.1."
        )
