"""The single home of worker records, read by snapshot."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from rbee.core.claims import Claim, Placement
from rbee.core.errors import WorkerNotFound
from rbee.core.launch import Footprint, Telemetry
from rbee.core.liveness import Vital
from rbee.core.worker import Worker


@dataclass(slots=True)
class Record:
    """All that is known of one worker. Each field has one writer, named here.

    ``worker``: its supervisor. ``vital``, ``healthy``, ``telemetry``: the heartbeats. ``footprint``, ``measured_at``,
    ``pids``, ``failed_checks``: the monitor. ``vram``, ``model_bytes``, ``model_path``: the admissions and
    their peaks.
    ``unannounced``: its supervisor. ``port``, ``started_at``: the pool, once; ``claim``, ``is_refused``: the pool, each
    time that it is admitted, or not.

    ``measured_at``: when the sampling that gave ``footprint`` began, on the hive's clock. ``pids``: its processes
    when they were last measured. ``vram``: bytes by device, as a driver tells. ``model_bytes``: of its model's files
    when it was started; ``model_path``: where they were found, empty where this hive did not start it.

    ``is_refused``: it was to be started again, and did not fit.

    ``unannounced``: it runs, but this hive has not heard where it serves; it is asked to announce itself.
    """

    worker: Worker
    vital: Vital
    started_at: datetime
    port: int = 0
    healthy: bool = True
    telemetry: Telemetry = field(default_factory=Telemetry)
    footprint: Footprint | None = None
    measured_at: float = float("-inf")
    failed_checks: int = 0
    claim: Claim | None = None
    vram: Mapping[int, int] | None = None
    pids: tuple[int, ...] = ()
    model_bytes: int | None = None
    model_path: str = ""
    unannounced: bool = False
    is_refused: bool = False
    _placed: Placement | None = None

    @property
    def worker_id(self) -> str:
        return self.worker.spec.worker_id

    def grant(self, claim: Claim | None) -> None:
        """It may take this much; None: nothing any more."""
        self._placed, self.claim, self.is_refused = self.placement, claim, False

    @property
    def placement(self) -> Placement:
        """Where it runs, or ran last; of one that was started by hand, where it says that it does."""
        placed = self._placed if self.claim is None else self.claim.placement
        if placed is not None:
            return placed
        spec = self.worker.spec
        return Placement() if spec.backend in ("auto", "cpu") else Placement(spec.backend, (spec.device or 0,), (1.0,))


class Registry:
    """``departed``: workers that are gone, while what they held is not yet seen to be free."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self.departed: dict[str, Record] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())

    def __contains__(self, worker_id: object) -> bool:
        return worker_id in self._records

    def add(self, record: Record) -> None:
        self._records[record.worker_id] = record

    def remove(self, worker_id: str) -> None:
        del self._records[worker_id]

    def find(self, worker_id: str) -> Record | None:
        return self._records.get(worker_id)

    def get(self, worker_id: str) -> Record:
        """The record of a worker. Raises WorkerNotFound."""
        record = self._records.get(worker_id)
        if record is None:
            raise WorkerNotFound(f"There is no worker '{worker_id[:80]}'. GET /v1/workers lists those there are.")
        return record
