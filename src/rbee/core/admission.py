"""Whether a worker fits: every number of the answer, and what would make it fit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rbee.core.claims import Claim, Holding, Need, Placement
from rbee.core.resources import DeviceReading, MachineReading


class Resource(StrEnum):
    """The label of ``rbee_hive_worker_spawn_resource_failures_total``."""

    RAM = "ram"
    VRAM = "vram"
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes. ``log_bytes``: what a new worker's log may grow to on the state directory's disk."""

    max_worker_memory: int
    min_free_memory: int
    min_free_vram: int
    min_free_disk: int
    log_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked for. ``devices``: those that may be used, none for the CPU; more than one may share a model.

    ``size`` gives the need for a placement and a context size. ``worker_id``: of one that is started again, whose own
    claim does not count against it. ``limit_bytes``: its max_memory_bytes. ``download_bytes``: of a model that would
    have to be fetched first.
    """

    model_ref: str
    backend: str
    devices: tuple[DeviceReading, ...]
    ctx_size: int
    size: Callable[[Placement, int], Need]
    worker_id: str | None = None
    limit_bytes: int | None = None
    download_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker has of a resource: ``claimed_bytes``, of which ``held_bytes`` are taken already."""

    worker_id: str
    model_ref: str
    claimed_bytes: int
    held_bytes: int


@dataclass(frozen=True, slots=True)
class Check:
    """One resource. It fits when need <= free - reserved - margin, and need <= limit where there is one.

    ``where``: the device's name and number, or the disk's path; empty for host memory. ``reserved_bytes``: what is
    claimed and not taken yet, by ``holders``. ``setting``: the name of the one to change; ``reason``: a sentence.
    """

    resource: Resource
    need_bytes: int
    free_bytes: int
    reserved_bytes: int
    margin_bytes: int
    fits: bool
    reason: str
    device: int | None = None
    where: str = ""
    limit_bytes: int | None = None
    setting: str = ""
    holders: tuple[Share, ...] = ()


@dataclass(frozen=True, slots=True)
class Advice:
    """What would make it fit: a sentence, and the one value that it is about."""

    text: str
    ctx_size: int | None = None
    device: int | None = None
    stop: tuple[str, ...] = ()
    setting: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer. ``claim``: what is granted where it fits, what would have been where not."""

    fits: bool
    model_ref: str
    ctx_size: int
    claim: Claim
    checks: tuple[Check, ...]
    advice: tuple[Advice, ...]
    message: str

    @property
    def lacking(self) -> tuple[Resource, ...]:
        """The resources that do not suffice, each once."""
        return tuple(dict.fromkeys(check.resource for check in self.checks if not check.fits))

    def details(self) -> dict[str, Any]:
        """The verdict as JSON values: body of a 507, answer of POST /v1/admission, log."""
        raise NotImplementedError


def decide(demand: Demand, machine: MachineReading, holdings: Sequence[Holding], limits: Limits) -> Verdict:
    """Whether the demand fits beside what is held."""
    raise NotImplementedError


def floor(machine: MachineReading, holdings: Sequence[Holding], limits: Limits) -> Check:
    """Whether even the memory that must stay free is left, before anything is known of a model."""
    raise NotImplementedError


def floor_details(check: Check) -> dict[str, Any]:
    """What a 507 says where nothing is known of the model yet: the same names as in ``Verdict.details``."""
    raise NotImplementedError
