"""How much memory a model takes: from its header and the settings of its worker to one figure a resource."""

from dataclasses import dataclass

from rbee.core.claims import Need, Peak, Placement
from rbee.core.model_header import ModelFacts, ModelHeader
from rbee.core.worker import WorkerSpec


@dataclass(frozen=True, slots=True)
class Sizing:
    """The settings of a worker that decide how much it takes.

    ``ctx_size``: tokens of one request. ``batch``: tokens computed at once. ``gpu_layers``: how many layers leave host
    memory, None for all where there is a device.
    """

    ctx_size: int
    slots: int
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    flash_attention: bool = True
    batch: int = 512
    prompt_cache_bytes: int = 0
    gpu_layers: int | None = None


def sizing_of(spec: WorkerSpec, prompt_cache_bytes: int) -> Sizing:
    """What the engine of *spec* will be started with."""
    raise NotImplementedError


def estimate(header: ModelHeader, sizing: Sizing, placement: Placement) -> Need:
    """What llama.cpp takes for a model with these settings, placed so."""
    raise NotImplementedError


def need_of(
    spec: WorkerSpec, facts: ModelFacts, prompt_cache_bytes: int, placement: Placement, peak: Peak | None
) -> Need:
    """What a worker for *spec* takes, whatever its engine; a *peak* of the same settings replaces a lower figure."""
    raise NotImplementedError


def peak_key(spec: WorkerSpec, placement: Placement, prompt_cache_bytes: int) -> str:
    """Names what a peak is remembered for: the model with all settings that decide how much it takes."""
    raise NotImplementedError
