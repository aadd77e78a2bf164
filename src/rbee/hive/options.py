"""What the pool is built from: settings that it needs, and the outside world."""

from dataclasses import dataclass, field

from rbee.core.admission import Limits
from rbee.core.launch import EngineOptions
from rbee.core.restart import RestartRules
from rbee.hive.ports import Library, Machine, Node, Peaks, Probe, Sizer, Store


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """The settings that the pool needs. Times in seconds, sizes in bytes. *processor*: as ``uname -m`` names it."""

    callback_url: str
    ports: range
    worker_host: str
    heartbeat_interval: float
    stale_after: float
    drain_timeout: float
    term_grace: float
    orphan_timeout: float
    prompt_cache_bytes: int
    engines: dict[str, EngineOptions]
    limits: Limits
    processor: str
    hard_memory_limit: bool = False
    health_timeout: float = 5.0
    leaves_workers: bool = False
    restart: RestartRules = field(default_factory=RestartRules)


@dataclass(frozen=True, slots=True)
class Adapters:
    """The outside world, as daemon.py or a test builds it."""

    node: Node
    store: Store
    library: Library
    probe: Probe
    machine: Machine
    sizer: Sizer
    peaks: Peaks
