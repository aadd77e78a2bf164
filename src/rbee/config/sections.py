"""Every section of the settings with its keys and defaults (DESIGN section 9 is the contract; this is its one home)."""

import re
import shlex
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import platformdirs
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationInfo, field_validator

from rbee.config.sizes import parse_duration, parse_size
from rbee.core.errors import RbeeError
from rbee.core.limits import MAX_CTX_SIZE, MAX_SLOTS
from rbee.core.model_ref import looks_like_reference, parse

COMMAS: Final = "text is a list, separated by commas or written as JSON"
"""Marks a setting whose text in a variable or a flag is a list."""

_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")

_ORIGIN: Final = re.compile(r"\*|null|[A-Za-z][A-Za-z0-9+.-]*://[^/?#\s*]+")
"""RFC 6454 section 6.2; any scheme, since applications and extensions have some of their own."""

MIB: Final = 2**20
GIB: Final = 2**30


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as_path(value: Any) -> Any:
    # Absolute at once: a worker runs in another directory than the daemon that reads this.
    return Path(value).expanduser().absolute() if isinstance(value, str) and value else value


def _as_command(value: Any) -> Any:
    return tuple(shlex.split(value)) if isinstance(value, str) else _as_tuple(value)


def _model_directory_and_home(data: dict[str, Any]) -> tuple[Path, ...]:
    try:
        return data["directory"], Path.home()
    except RuntimeError:  # a user without a home directory, as containers have them
        return (data["directory"],)


Size = Annotated[int, BeforeValidator(parse_size)]
Seconds = Annotated[float, BeforeValidator(parse_duration)]
Strings = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), COMMAS]
FilePath = Annotated[Path, BeforeValidator(_as_path)]
Paths = Annotated[tuple[FilePath, ...], BeforeValidator(_as_tuple), COMMAS]
Command = Annotated[tuple[str, ...], BeforeValidator(_as_command)]
Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Slots = Annotated[int, Field(ge=1, le=MAX_SLOTS)]
CtxSize = Annotated[int, Field(ge=1, le=MAX_CTX_SIZE)]
Interval = Annotated[Seconds, Field(gt=0)]
RestartMode = Literal["on_failure", "always", "never"]


class Section(BaseModel):
    # Strict: "9200" in a file is a mistake to name, not a number to guess. Text from variables and
    # flags, which have no types, is converted before it gets here.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class Server(Section):
    host: str = Field("127.0.0.1", min_length=1)
    port: Port = 9200
    allowed_hosts: Strings = ()
    state_dir: FilePath = Field(default_factory=lambda: platformdirs.user_data_path("rbee", appauthor=False))
    tls_cert: FilePath | None = None
    tls_key: FilePath | None = Field(None, validate_default=True)

    @field_validator("tls_key")
    @classmethod
    def _goes_with_its_certificate(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if (value is None) != (info.data.get("tls_cert") is None):
            raise ValueError("server.tls_cert and server.tls_key go together: set both or none")
        return value


class Auth(Section):
    api_token: SecretStr | None = None
    api_token_file: FilePath | None = None
    metrics_auth: bool = False


class Key(Section):
    sha256: str
    role: Literal["admin", "client", "metrics"] = "client"
    max_in_flight: Count = 0
    """0: no limit."""
    requests_per_minute: Count = 0
    """0: no limit."""

    @field_validator("sha256")
    @classmethod
    def _is_a_digest(cls, value: str) -> str:
        if not _SHA256.fullmatch(value):
            raise ValueError('it must be the key\'s SHA-256, 64 hexadecimal digits: printf %s "$KEY" | sha256sum')
        return value.lower()


class Heartbeat(Section):
    interval: Interval = 30.0
    stale_after: Interval = Field(60.0, validate_default=True)

    @field_validator("stale_after")
    @classmethod
    def _outlives_one_lost_beat(cls, value: float, info: ValidationInfo) -> float:
        interval = info.data.get("interval", 0.0)
        if value < 2 * interval:
            raise ValueError(
                f"it must be at least twice heartbeat.interval ({interval:g}s), or one late beat would end "
                f"a healthy worker; set it to {2 * interval:g}s or more"
            )
        return value


class Monitor(Section):
    interval: Interval = 30.0
    memory_interval: Interval = 5.0
    health_timeout: Interval = 5.0
    max_failures: AtLeastOne = 3
    hang_timeout: Interval = 120.0


class Lifecycle(Section):
    load_timeout: Interval = 300.0
    load_limit: Interval = 3600.0
    drain_timeout: Seconds = 30.0
    term_grace: Seconds = 10.0
    idle_timeout: Seconds = 300.0
    orphan_timeout: Interval = 300.0
    leave_timeout: Interval = 86400.0
    shutdown_timeout: Interval = 30.0
    on_shutdown: Literal["stop", "leave"] = "stop"


class Restart(Section):
    policy: RestartMode = "on_failure"
    base_delay: Seconds = 1.0
    max_delay: Seconds = Field(60.0, validate_default=True)
    jitter: float = Field(0.2, ge=0, le=1)
    max_failures: AtLeastOne = 5
    period: Interval = 300.0
    open_for: Interval = 60.0
    stable_after: Interval = 300.0

    @field_validator("max_delay")
    @classmethod
    def _is_not_below_the_first(cls, value: float, info: ValidationInfo) -> float:
        if value < info.data.get("base_delay", 0.0):
            raise ValueError("it must be at least restart.base_delay")
        return value


class Limits(Section):
    max_worker_memory: Size = 8 * GIB
    min_free_memory: Size = 2 * GIB
    min_free_vram: Size = 1 * GIB
    min_free_disk: Size = 10 * GIB
    hard_memory_limit: bool = False


class Workers(Section):
    host: str = Field("127.0.0.1", min_length=1)
    port_range: str = "8081-9000"
    engine: str = Field("llama-cpp", min_length=1)
    ctx_size: CtxSize = 4096
    slots: Slots = 4
    prompt_cache: Size = 512 * MIB
    allow_external: bool = True
    """load() makes this false where server.host is not loopback and nobody has said otherwise."""
    external_hosts: Strings = ()

    @field_validator("port_range")
    @classmethod
    def _is_a_range_of_ports(cls, value: str) -> str:
        first, dash, last = (part.strip() for part in value.partition("-"))
        if not (dash and all(part.isascii() and part.isdigit() for part in (first, last))):
            raise ValueError("write the first and the last port, such as 8081-9000")
        if not 1 <= int(first) <= int(last) <= 65535:
            raise ValueError("ports lie between 1 and 65535, the first not above the last")
        return f"{int(first)}-{int(last)}"

    @property
    def ports(self) -> range:
        first, _, last = self.port_range.partition("-")
        return range(int(first), int(last) + 1)


class Engine(Section):
    """One way to run a model: a command, or another environment with its own build of xllamacpp."""

    command: Command = ()
    health_path: str = Field("/health", pattern=r"^/")
    python: FilePath | None = None


class Model(Section):
    """A model that the settings name; ``ref`` is the table's own name where it is not given."""

    ref: str
    alias: str | None = None
    ctx_size: CtxSize | None = None
    slots: Slots | None = None
    engine: str | None = None
    engine_args: Strings = ()
    idle_timeout: Seconds | None = None
    pinned: bool = False
    preload: bool = False
    restart: RestartMode | None = None
    replicas: AtLeastOne = 1

    @field_validator("ref")
    @classmethod
    def _is_a_reference(cls, value: str) -> str:
        try:
            parse(value)
        except RbeeError as error:
            raise ValueError(error.message) from error
        return value

    @field_validator("alias")
    @classmethod
    def _is_no_reference(cls, value: str | None) -> str | None:
        if value is not None and (not value or looks_like_reference(value)):
            raise ValueError("an alias may not be empty or look like a model reference")
        return value


class Gateway(Section):
    queue_limit: Count = 512
    queue_timeout: Seconds = 60.0
    max_body: Size = 32 * MIB
    max_header: Size = 64 * 1024
    buffer_limit: Size = Field(256 * MIB, validate_default=True)
    header_timeout: Interval = 10.0
    idle_timeout: Interval = 75.0
    stall_timeout: Seconds = 0.0
    """0: off."""
    keepalive_after: Seconds = 15.0
    affinity: bool = True
    cors_origins: Strings = ()

    @field_validator("buffer_limit")
    @classmethod
    def _holds_the_largest_body(cls, value: int, info: ValidationInfo) -> int:
        largest = info.data.get("max_body", 0)
        if value < largest:
            raise ValueError(
                f"it must be at least gateway.max_body ({largest} bytes), or whoever sends a body of that size would "
                "be told for ever to come back later"
            )
        return value

    @field_validator("cors_origins")
    @classmethod
    def _are_as_browsers_send_them(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is no origin as browsers send it: scheme, host and, if need be, port, without a path "
                    "or a slash at the end, such as https://app.example or http://localhost:3000; or * for all"
                )
        return value


class Models(Section):
    directory: FilePath = Field(
        default_factory=lambda: platformdirs.user_data_path("rbee", appauthor=False) / "models",
    )
    """load() puts this below server.state_dir unless it is given."""
    allowed_roots: Paths = Field(default_factory=_model_directory_and_home)
    max_bytes: Size = 0
    """0: no quota."""
    hf_endpoint: str = Field("https://huggingface.co", pattern=r"^https?://")
    hf_token_file: FilePath | None = None


class Log(Section):
    format: Literal["console", "json"] = "console"
    level: Literal["debug", "info", "warning", "error"] = "info"
    max_bytes: Size = 10 * MIB
    keep: AtLeastOne = 5


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach *host*. A name other than localhost is never trusted to be one."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
