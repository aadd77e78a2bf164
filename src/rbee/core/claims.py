"""What a worker needs, where it was placed, and what it may therefore take: values that admission works with."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Source(StrEnum):
    """Where a need comes from."""

    ESTIMATE = "estimate"
    """From the model's header."""
    MEASURED = "measured"
    """What the same model took with the same settings before, where that was more."""
    STATED = "stated"
    """Whoever asked said so."""
    FILE_SIZE = "file_size"
    """The size of the file, and a fifth more: nothing better is known."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What one resource is needed for, in bytes. ``unexplained_bytes``: what was measured above the sum of the rest."""

    weights_bytes: int = 0
    kv_cache_bytes: int = 0
    compute_bytes: int = 0
    prompt_cache_bytes: int = 0
    overhead_bytes: int = 0
    unexplained_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return (
            self.weights_bytes
            + self.kv_cache_bytes
            + self.compute_bytes
            + self.prompt_cache_bytes
            + self.overhead_bytes
            + self.unexplained_bytes
        )


@dataclass(frozen=True, slots=True)
class Need:
    """Host memory, and video memory on each device of a placement, in its order."""

    ram: Parts
    vram: tuple[Parts, ...] = ()
    source: Source = Source.ESTIMATE


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a worker runs. ``devices``: numbers within the backend, none for the CPU; ``split``: the share of the
    model's layers that each gets, as many, with a sum of 1."""

    backend: str = "cpu"
    devices: tuple[int, ...] = ()
    split: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """What admission has granted to one worker, and where."""

    placement: Placement
    need: Need


@dataclass(frozen=True, slots=True)
class Peak:
    """The most that a model with some settings was seen to take, bytes; ``vram_bytes`` by place in a placement."""

    ram_bytes: int
    vram_bytes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Holding:
    """One worker as admission sees it: its claim, and what of that the readings of the machine show as taken already.

    ``ram_bytes``: its memory that the kernel does not count as available (anonymous, shared, locked). ``vram_bytes``:
    by device number, None where a driver does not tell. ``is_settled``: it is loaded, and was so before the machine
    was looked at. ``is_idle``: it could be stopped without hurting a request.
    """

    worker_id: str
    model_ref: str
    claim: Claim
    ram_bytes: int = 0
    vram_bytes: Mapping[int, int] | None = None
    is_settled: bool = False
    is_idle: bool = False
