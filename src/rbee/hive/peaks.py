"""The most that models were seen to take, stored apart from who measures: a disk that hangs must not hold that up."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import anyio

from rbee.core.claims import Peak, Placement
from rbee.core.errors import InvalidField, RequestError
from rbee.core.launch import Footprint
from rbee.core.model_header import ModelFacts
from rbee.core.worker import WorkerSpec
from rbee.hive.ports import Peaks
from rbee.hive.registry import Record

PEAK_STEP: Final = 1.01
"""Times the peak that is known, above which a new one is worth a write."""


class PeakBook:
    """*key_of* names what a peak belongs to: a worker's settings, the bytes of its model's files, and a placement.

    *facts* tells of those files. *limit*: bytes, of any worker's memory. ``run`` has to run for anything to be stored.
    """

    def __init__(
        self,
        store: Peaks,
        key_of: Callable[[WorkerSpec, int, Placement], str],
        facts: Callable[[WorkerSpec], Awaitable[ModelFacts]],
        limit: int,
    ) -> None:
        self._store = store
        self._key_of = key_of
        self._facts = facts
        self._limit = limit
        self._peaks: dict[str, Peak] = {}
        self._unsaved: dict[str, Peak | None] = {}
        self._unsized: dict[str, Record] = {}
        self._has_work = anyio.Event()

    async def load(self) -> None:
        """Remember what was measured by the hives before."""
        self._peaks.update(await self._store.load())

    async def run(self) -> None:
        """Do what takes a disk: store what was noted, and look at the models of those that an earlier hive started."""
        while True:
            await self._has_work.wait()
            self._has_work = anyio.Event()
            unsized, self._unsized = self._unsized, {}
            for record in unsized.values():
                # Of a model that is gone nothing is kept.
                with suppress(RequestError):
                    record.model_bytes = (await self._facts(record.worker.spec)).file_bytes
            await self.flush()

    async def flush(self) -> None:
        """Store what was noted since the last time."""
        unsaved, self._unsaved = self._unsaved, {}
        for key, peak in unsaved.items():
            await (self._store.forget(key) if peak is None else self._store.save(key, peak))

    def of(self, spec: WorkerSpec, file_bytes: int, placement: Placement) -> Peak | None:
        return self._peaks.get(self._key_of(spec, file_bytes, placement))

    def note(self, record: Record, placement: Placement, footprint: Footprint) -> None:
        """A worker was seen to take this much."""
        spec, size = record.worker.spec, record.model_bytes
        if size is None:
            self._unsized[record.worker_id] = record
            self._has_work.set()
            return
        key = self._named(spec, size, placement)
        if key is None:
            return
        known = self._peaks.get(key, Peak(0))
        # What goes beyond its limit is the fault for which it is ended; such a peak would forbid the model for ever.
        limit = spec.memory_limit(self._limit)
        seen = record.vram or {}
        vram = tuple(seen.get(device, 0) for device in placement.devices)
        before = known.vram_bytes or (0,) * len(vram)
        peak = Peak(
            max(known.ram_bytes, min(limit, _ram_taken(placement, footprint))),
            tuple(max(pair) for pair in zip(before, vram, strict=False)),
        )
        if _exceeds(peak, known):
            self._peaks[key] = self._unsaved[key] = peak
            self._has_work.set()

    def forget(self, record: Record) -> None:
        """A life that was ended for its memory was at fault: what it took is no measure for the next."""
        if record.model_bytes is None:
            return
        key = self._named(record.worker.spec, record.model_bytes, record.placement)
        if key is not None and self._peaks.pop(key, None) is not None:
            self._unsaved[key] = None
            self._has_work.set()

    def _named(self, spec: WorkerSpec, file_bytes: int, placement: Placement) -> str | None:
        """None for a worker whose engine the settings do not have any more."""
        try:
            return self._key_of(spec, file_bytes, placement)
        except InvalidField:
            return None


def _ram_taken(placement: Placement, footprint: Footprint) -> int:
    """The most that was resident; beside devices what is now, since a model on its way there passes through the map of
    its file, all of it pages that the kernel can drop."""
    if placement.devices:
        return footprint.private_bytes + footprint.locked_bytes
    return footprint.peak_rss_bytes


def _exceeds(peak: Peak, known: Peak) -> bool:
    pairs = [
        (peak.ram_bytes, known.ram_bytes),
        *zip(peak.vram_bytes, known.vram_bytes or peak.vram_bytes, strict=False),
    ]
    return any(new > PEAK_STEP * old for new, old in pairs) or (bool(peak.vram_bytes) and not known.vram_bytes)
