"""The bodies of the control API. Unknown fields, wrong types and out-of-range numbers are refused here (422)."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from rbee.core.engine_args import MAX_TEXT
from rbee.core.launch import Telemetry
from rbee.core.limits import MAX_CTX_SIZE, MAX_NAME, MAX_SLOTS
from rbee.core.model_ref import parse
from rbee.core.worker import Restart, WorkerSpec
from rbee.hive.announcements import Announcement
from rbee.hive.orders import Order

NAME = rf"^[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}}$"
ALIAS = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$"

Count = Annotated[int, Field(ge=0, le=2**62)]


EngineArguments = Annotated[
    list[Annotated[str, Field(max_length=MAX_TEXT, pattern=r"^[^\x00]*$")]], Field(max_length=64)
]


class Body(BaseModel):
    # Strict: "4" where a number belongs is a mistake that the caller wants to hear of.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SpawnRequest(Body):
    """What to start. ``device`` counts from 0; ``idle_timeout`` in seconds, 0 for never."""

    model_ref: str = Field(min_length=1)
    backend: str = Field("auto", max_length=40)
    device: int | None = Field(None, ge=0, le=1023)
    alias: str | None = Field(None, pattern=ALIAS)
    ctx_size: int | None = Field(None, ge=1, le=MAX_CTX_SIZE)
    slots: int | None = Field(None, ge=1, le=MAX_SLOTS)
    engine: str | None = Field(None, pattern=NAME)
    engine_args: EngineArguments = []
    restart: Annotated[Restart, Field(strict=False)] | None = None
    max_memory_bytes: int | None = Field(None, ge=1, le=2**62)
    idle_timeout: float | None = Field(None, ge=0, le=365 * 86400)

    def order(self) -> Order:
        return Order(**{**self.model_dump(), "engine_args": tuple(self.engine_args)})


class SpawnAnswer(BaseModel):
    worker_id: str
    url: str
    state: str


def _well_formed(reference: Any) -> Any:
    if isinstance(reference, str):
        parse(reference)
    return reference


class OwnSpec(BaseModel):
    """What the hive gave a worker along, and gets back from it should it have lost its own record."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    backend: str = Field("cpu", pattern=NAME)
    device: int | None = Field(None, ge=0, le=1023)
    engine: str = Field(pattern=NAME)
    engine_args: EngineArguments = []
    ctx_size: int = Field(ge=1, le=MAX_CTX_SIZE)
    restart: Annotated[Restart, Field(strict=False)]
    max_memory_bytes: int | None = Field(None, ge=1, le=2**62)
    idle_timeout: float | None = Field(None, ge=0, le=365 * 86400)

    def own(self, worker_id: str, model_ref: str) -> WorkerSpec:
        fields = {**self.model_dump(), "engine_args": tuple(self.engine_args)}
        return WorkerSpec(worker_id, model_ref, **fields)


class ReadyRequest(Body):
    """A worker calls back. ``url`` is where its own server listens; ``reason`` goes with the state failed."""

    worker_id: str = Field(pattern=NAME)
    incarnation: int | None = Field(None, ge=0, le=2**31)
    state: Literal["loading", "ready", "failed"]
    url: str = Field(max_length=256, pattern=r"^http://[^\s\x00]+$")
    model_ref: Annotated[str, BeforeValidator(_well_formed)]
    backend: str = Field(pattern=NAME)
    device: int = Field(ge=0, le=1023)
    pid: int = Field(ge=1, le=2**31)
    engine_pid: int | None = Field(None, ge=1, le=2**31)
    slots_total: int = Field(ge=1, le=MAX_SLOTS)
    alias: str | None = Field(None, pattern=ALIAS)
    reason: str | None = Field(None, max_length=4096)
    spec: OwnSpec | None = None

    def announcement(self) -> Announcement:
        own = None if self.spec is None else self.spec.own(self.worker_id, self.model_ref)
        return Announcement(**self.model_dump(exclude={"spec"}), own=own)


class ReadyAnswer(BaseModel):
    message: str
    engine_key: str
    heartbeat_interval: float
    orphan_timeout: float


class TelemetryBody(Body):
    rss_bytes: Count | None = None
    vram_bytes: Count | None = None
    slots_total: Count | None = None
    slots_busy: Count | None = None
    requests_total: Count | None = None
    prompt_tokens_total: Count | None = None
    generated_tokens_total: Count | None = None
    tokens_per_second: float | None = Field(None, ge=0, allow_inf_nan=False)

    def telemetry(self) -> Telemetry:
        return Telemetry(**self.model_dump())


class HeartbeatRequest(Body):
    """``timestamp`` is the worker's own clock, for people; the hive stamps beats by its own."""

    worker_id: str = Field(pattern=NAME)
    incarnation: int | None = Field(None, ge=0, le=2**31)
    timestamp: Annotated[AwareDatetime, Field(strict=False)]
    health_status: Literal["healthy", "degraded"]
    telemetry: TelemetryBody | None = None


class HeartbeatAnswer(BaseModel):
    message: str
    orphan_timeout: float


class ExitView(BaseModel):
    reason: str
    exit_code: int | None
    signal: int | None
    message: str


class MemoryView(BaseModel):
    """Bytes. ``private_bytes``: what nobody else could use instead, mapped files left out."""

    rss_bytes: int | None
    private_bytes: int | None
    vram_bytes: int | None


class CircuitView(BaseModel):
    """What is known of the failures of one kind of worker; ``probe_at``: when an open one allows its next try."""

    key: str
    model_ref: str
    state: Literal["closed", "open", "half_open"]
    failures: int
    worker_id: str | None
    reason: str | None
    exit_reason: str | None
    exit_code: int | None
    signal: int | None
    last_log_lines: list[str]
    trying: str | None
    probe_at: datetime | None


class CircuitList(BaseModel):
    circuits: list[CircuitView]


class ClaimView(BaseModel):
    """What it may take, and how much of that the weights are; ``source``: where the figures come from.

    ``vram``: one entry a device, in the order of ``devices``.
    """

    ram_bytes: int
    ram_weights_bytes: int
    vram_bytes: list[int]
    vram_weights_bytes: list[int]
    source: str


class WorkerView(BaseModel):
    """One worker. ``state`` shows a ready one as idle or busy; ``slots`` is what it serves at once.

    ``devices``: all that it runs on, none for the CPU; ``device``: the first of them, or 0.
    """

    worker_id: str
    state: str
    message: str
    model_ref: str
    alias: str | None
    backend: str
    device: int
    devices: list[int]
    engine: str
    engine_args: list[str]
    pid: int | None
    engine_pid: int | None
    url: str
    ctx_size: int
    slots: int
    in_flight: int
    incarnation: int
    restart: str
    restart_count: int
    idle_timeout: float | None
    max_memory_bytes: int | None
    started_at: datetime
    state_age_seconds: float
    last_heartbeat_age_seconds: float
    health_status: str
    memory: MemoryView
    claim: ClaimView | None
    telemetry: dict[str, float | None]
    last_exit: ExitView | None
    circuit: CircuitView | None
    external: bool


class WorkerList(BaseModel):
    workers: list[WorkerView]


class ModelView(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "rbee"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelView]
