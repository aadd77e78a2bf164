"""The bodies of what admission answers: a verdict, and what the machine has and who has it. Sizes in bytes."""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from rbee.control.schemas import SpawnRequest
from rbee.hive.orders import Order


class AdmissionRequest(SpawnRequest):
    """What would be started. ``download_bytes``: of its model, where that would have to be fetched first."""

    download_bytes: Annotated[int, Field(ge=0, le=2**62)] = 0

    def order(self) -> Order:
        fields = self.model_dump(exclude={"download_bytes"})
        return Order(**{**fields, "engine_args": tuple(self.engine_args)})


class ShareView(BaseModel):
    worker_id: str
    model_ref: str
    claimed_bytes: int
    held_bytes: int


class CheckView(BaseModel):
    """One resource: it fits when need <= free - reserved - margin, and need <= limit where there is one."""

    resource: str
    device: int | None
    where: str
    need_bytes: int
    free_bytes: int
    reserved_bytes: int
    left_bytes: int
    margin_bytes: int
    limit_bytes: int | None
    short_bytes: int
    fits: bool
    reason: str
    setting: str
    holders: list[ShareView]
    holders_left_out: int


class NeedView(BaseModel):
    """By what it is needed for; ``vram``: one entry a device, with its number."""

    ram: dict[str, int]
    vram: list[dict[str, int]]


class AdviceView(BaseModel):
    text: str
    ctx_size: int | None
    device: int | None
    stop: list[str]
    setting: str
    setting_bytes: int | None


class VerdictView(BaseModel):
    """Whether a worker fits, with every number; the same object stands in the details of a 507."""

    fits: bool
    model_ref: str
    ctx_size: int
    backend: str
    devices: list[int]
    split: list[float]
    source: str
    message: str
    resources: list[CheckView]
    need: NeedView
    advice: list[AdviceView]


class MemoryResource(BaseModel):
    """``left_bytes``: free and not promised; the group's: of the cgroup that leaves least, null where none limits."""

    total_bytes: int
    available_bytes: int
    group_limit_bytes: int | None
    group_left_bytes: int | None
    free_bytes: int
    reserved_bytes: int
    left_bytes: int
    margin_bytes: int


class DeviceResource(BaseModel):
    """``ours_bytes``: what workers hold there, ``others_bytes``: what else is taken; null where that is not told."""

    backend: str
    index: int
    name: str
    uuid: str
    total_bytes: int
    free_bytes: int
    reserved_bytes: int
    left_bytes: int
    margin_bytes: int
    ours_bytes: int | None
    others_bytes: int | None
    is_live: bool


class DiskResource(BaseModel):
    path: str
    total_bytes: int
    free_bytes: int
    margin_bytes: int


class DisksResource(BaseModel):
    models: DiskResource
    state: DiskResource


class Amounts(BaseModel):
    """``vram_bytes``: one a device, in the order of the worker's ``devices``."""

    ram_bytes: int
    vram_bytes: list[int]


class Measured(BaseModel):
    """What was last seen; null for what was not."""

    rss_bytes: int | None
    private_bytes: int | None
    peak_rss_bytes: int | None
    vram_bytes: list[int] | None


class WorkerResource(BaseModel):
    """What one worker has a claim to. ``reserved``: what of that it has not taken yet."""

    worker_id: str
    model_ref: str
    state: str
    backend: str
    devices: list[int]
    source: str
    claimed: Amounts
    reserved: Amounts
    measured: Measured


class EngineResource(BaseModel):
    """What an engine's own build can use beside the CPU; ``problem``: why it could not be asked."""

    engine: str
    devices: list[dict[str, Any]]
    problem: str


class ResourcesView(BaseModel):
    memory: MemoryResource
    devices: list[DeviceResource]
    disks: DisksResource
    workers: list[WorkerResource]
    engines: list[EngineResource]
    read_age_seconds: float
