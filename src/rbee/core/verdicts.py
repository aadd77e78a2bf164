"""What admission asks and answers: a demand, the checks of each resource, and the verdict with every number in it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from rbee.core.claims import Claim, Need, Parts, Placement
from rbee.core.resources import DeviceReading

MAX_HOLDERS: Final = 20
"""How many workers one check names; the rest is counted."""


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

    ``size`` gives the need for a placement and a context size; it is the same whichever device of a backend it is.
    ``worker_id``: of one that is started again, whose own claim does not count against it. ``limit_bytes``: its
    max_memory_bytes. ``download_bytes``: of a model that would have to be fetched first. ``others``: devices of the
    same backend that were not asked for; one of them may be advised.
    """

    model_ref: str
    backend: str
    devices: tuple[DeviceReading, ...]
    ctx_size: int
    size: Callable[[Placement, int], Need]
    worker_id: str | None = None
    limit_bytes: int | None = None
    download_bytes: int = 0
    others: tuple[DeviceReading, ...] = ()


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker has of a resource: ``claimed_bytes``, and the ``held_bytes`` that it has taken already."""

    worker_id: str
    model_ref: str
    claimed_bytes: int
    held_bytes: int

    @property
    def reserved_bytes(self) -> int:
        """What it may still take."""
        return max(0, self.claimed_bytes - self.held_bytes)

    def details(self) -> dict[str, Any]:
        """The share as JSON values; there may be hundreds in one answer, for which asdict() takes a millisecond."""
        return {
            "worker_id": self.worker_id,
            "model_ref": self.model_ref,
            "claimed_bytes": self.claimed_bytes,
            "held_bytes": self.held_bytes,
        }


@dataclass(frozen=True, slots=True)
class Check:
    """One resource. It fits when need <= free - reserved - margin, and need <= limit where there is one.

    ``where``: the device's name and number, or the disk's path; empty for host memory. ``reserved_bytes``: what is
    claimed and not taken yet, by ``holders``, the largest first; ``holders_left_out``: so many are not named.
    ``setting``: the name of the one that is in the way, empty where none is; ``reason``: a sentence.
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
    holders_left_out: int = 0

    @property
    def left_bytes(self) -> int:
        """Free and not promised to anybody; nothing where more is promised than is free."""
        return max(0, self.free_bytes - self.reserved_bytes)

    @property
    def short_bytes(self) -> int:
        """How much is missing, or above the limit if that is more; 0 where it fits."""
        above = 0 if self.limit_bytes is None else self.need_bytes - self.limit_bytes
        return max(0, self.need_bytes + self.margin_bytes + self.reserved_bytes - self.free_bytes, above)

    def details(self) -> dict[str, Any]:
        """The check as JSON values."""
        return {
            "resource": str(self.resource),
            "device": self.device,
            "where": self.where,
            "need_bytes": self.need_bytes,
            "free_bytes": self.free_bytes,
            "reserved_bytes": self.reserved_bytes,
            "left_bytes": self.left_bytes,
            "margin_bytes": self.margin_bytes,
            "limit_bytes": self.limit_bytes,
            "short_bytes": self.short_bytes,
            "fits": self.fits,
            "reason": self.reason,
            "setting": self.setting,
            "holders": [share.details() for share in self.holders],
            "holders_left_out": self.holders_left_out,
        }


@dataclass(frozen=True, slots=True)
class Advice:
    """What would make it fit: a sentence, and the one value that it is about.

    ``setting_bytes``: what ``setting`` would have to be at least (a limit) or at most (a margin).
    """

    text: str
    ctx_size: int | None = None
    device: int | None = None
    stop: tuple[str, ...] = ()
    setting: str = ""
    setting_bytes: int | None = None


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
        placement, need = self.claim.placement, self.claim.need
        return {
            "fits": self.fits,
            "model_ref": self.model_ref,
            "ctx_size": self.ctx_size,
            "backend": placement.backend,
            "devices": list(placement.devices),
            "split": list(placement.split),
            "source": str(need.source),
            "message": self.message,
            "resources": [check.details() for check in self.checks],
            "need": {"ram": _parts(need.ram), "vram": _by_device(placement.devices, need.vram)},
            "advice": [{**asdict(advice), "stop": list(advice.stop)} for advice in self.advice],
        }


def _by_device(devices: Sequence[int], vram: Sequence[Parts]) -> list[dict[str, int]]:
    return [{"device": device, **_parts(parts)} for device, parts in zip(devices, vram, strict=True)]


def _parts(parts: Parts) -> dict[str, int]:
    return {**asdict(parts), "total_bytes": parts.total_bytes}
