"""On which devices a model runs, and how it is divided between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final

from rbee.core.claims import Need, Placement
from rbee.core.ledger import Room
from rbee.core.limits import MAX_DEVICES
from rbee.core.verdicts import Demand

LEVELLING: Final = 4
"""Rounds in which all devices are filled alike; where layers are large, that may never end."""

GRID: Final = 512
"""Parts of a model that a split is tried in; models have up to some 130 layers."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A placement, what it takes, and by how much the devices' room is too small for that."""

    placement: Placement
    need: Need
    over_bytes: int

    def fits(self, room: Room) -> bool:
        return self.over_bytes == 0 and self.need.ram.total_bytes <= room.ram_bytes and room.disk_fits


def place(demand: Demand, room: Room, ctx_size: int, is_thorough: bool = True) -> Placed:
    """The fewest devices that suffice, those with most room first; where none do, what lacks least.

    A model for a GPU is never placed on the CPU. What is found for less than *is_thorough* fits too, but a division
    that only just does may be missed.
    """
    if not room.vram_bytes:
        placement = Placement(demand.backend)
        return Placed(placement, demand.size(placement, ctx_size), 0)
    widest = sorted(room.vram_bytes, key=lambda number: (-room.vram_bytes[number], number))
    best = _divide(demand, room, ctx_size, widest[:1])
    usable = [number for number in widest if room.vram_bytes[number] > 0][:MAX_DEVICES]
    # Divided it takes more in all, never less: of too few or too small ones only how much is missing is asked for.
    whole, reach = best.need.vram[0].total_bytes, list(accumulate(room.vram_bytes[number] for number in usable))
    counts = range(2, len(usable) + 1)
    for count in [count for count in counts if reach[count - 1] >= whole] or counts[-1:]:
        if best.over_bytes == 0:
            break
        placed = _divide(demand, room, ctx_size, sorted(usable[:count]), is_thorough)
        if placed.over_bytes < best.over_bytes:
            best = placed
    return best


def _divide(demand: Demand, room: Room, ctx_size: int, devices: Sequence[int], is_thorough: bool = True) -> Placed:
    """A model on all of these *devices*, at first in proportion to what is left on each.

    Layers are whole, and each device needs some memory of its own, so that split may miss where another one fits.
    """
    rooms = [room.vram_bytes[number] for number in devices]
    shares = _shares(rooms) if len(rooms) > 1 else [1.0]
    best = placed = _try(demand, ctx_size, devices, shares, rooms)
    for _ in range(LEVELLING):
        needs = [parts.total_bytes for parts in placed.need.vram]
        if best.over_bytes == 0 or len(devices) == 1 or sum(needs) > sum(rooms):
            return best
        shares = _levelled(shares, needs, rooms)
        placed = _try(demand, ctx_size, devices, shares, rooms)
        best = min(best, placed, key=lambda one: one.over_bytes)
    if best.over_bytes and is_thorough:
        placed = _fill(demand, ctx_size, devices, rooms)
    return min(best, placed, key=lambda one: one.over_bytes)


def _fill(demand: Demand, ctx_size: int, devices: Sequence[int], rooms: Sequence[int]) -> Placed:
    """As much on each device as there is room for, one after another: if any split fits, this one does."""
    cuts = [0]
    for index, left in enumerate(rooms[:-1]):
        low, high = cuts[-1], GRID
        while low < high:
            middle = (low + high + 1) // 2
            tried = _try(demand, ctx_size, devices, _between([*cuts, middle], len(devices)), rooms)
            low, high = (middle, high) if tried.need.vram[index].total_bytes <= left else (low, middle - 1)
        cuts.append(low)
    return _try(demand, ctx_size, devices, _between(cuts, len(devices)), rooms)


def _between(cuts: Sequence[int], count: int) -> list[float]:
    """The shares of *count* devices that *cuts* divide; the last one gets what is behind the last cut."""
    ends = [*cuts, *[cuts[-1]] * (count - len(cuts)), GRID]
    return [(end - start) / GRID for start, end in pairwise(ends)]


def _try(
    demand: Demand, ctx_size: int, devices: Sequence[int], shares: Sequence[float], rooms: Sequence[int]
) -> Placed:
    placement = Placement(demand.backend, tuple(devices), tuple(shares))
    need = demand.size(placement, ctx_size)
    over = sum(max(0, parts.total_bytes - left) for parts, left in zip(need.vram, rooms, strict=True))
    return Placed(placement, need, over)


def _levelled(shares: Sequence[float], needs: Sequence[int], rooms: Sequence[int]) -> list[float]:
    """Shares that would fill each device alike, if what it needs were in proportion to its share."""
    fill = zip(shares, needs, rooms, strict=True)
    # A device that holds no layer yet tells nothing of what one more takes there: no more than doubled at once.
    return _shares([share * min(2.0, max(0.5, left / max(1, need))) for share, need, left in fill])


def _shares(weights: Sequence[float]) -> list[float]:
    """The *weights* in proportion, rounded to what a person can read, with a sum of 1."""
    total = sum(weights)
    rounded = [round(weight / total, 4) for weight in weights]
    largest = rounded.index(max(rounded))
    rounded[largest] = round(rounded[largest] + 1.0 - sum(rounded), 4)
    return rounded
