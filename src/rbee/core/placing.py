"""On which devices a model runs, and how it is divided between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rbee.core.claims import Need, Placement
from rbee.core.ledger import Room
from rbee.core.verdicts import Demand

LEVELLING: Final = 6
"""Rounds in which all devices are filled alike; where layers are large, that may never end."""

SHIFTING: Final = 6
"""Rounds after those, in which ever more goes from the fullest device to the one with most left."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A placement, what it takes, and by how much the devices' room is too small for that."""

    placement: Placement
    need: Need
    over_bytes: int

    def fits(self, room: Room) -> bool:
        return self.over_bytes == 0 and self.need.ram.total_bytes <= room.ram_bytes and room.disk_fits


def place(demand: Demand, room: Room, ctx_size: int) -> Placed:
    """The fewest devices that suffice, those with most room first; where none do, what lacks least.

    A model for a GPU is never placed on the CPU.
    """
    if not room.vram_bytes:
        placement = Placement(demand.backend)
        return Placed(placement, demand.size(placement, ctx_size), 0)
    widest = sorted(room.vram_bytes, key=lambda number: (-room.vram_bytes[number], number))
    best = _divide(demand, room, ctx_size, widest[:1])
    for count in range(2, len(widest) + 1):
        if best.over_bytes == 0 or room.vram_bytes[widest[count - 1]] <= 0:
            break
        placed = _divide(demand, room, ctx_size, sorted(widest[:count]))
        if placed.over_bytes < best.over_bytes:
            best = placed
    return best


def _divide(demand: Demand, room: Room, ctx_size: int, devices: Sequence[int]) -> Placed:
    """A model on all of these *devices*, at first in proportion to what is left on each.

    Layers are whole, and each device needs some memory of its own, so that split may miss where another one fits.
    """
    rooms = [room.vram_bytes[number] for number in devices]
    shares = _shares(rooms) if len(rooms) > 1 else [1.0]
    best = placed = _try(demand, ctx_size, devices, shares, rooms)
    for turn in range(LEVELLING + SHIFTING):
        needs = [parts.total_bytes for parts in placed.need.vram]
        if best.over_bytes == 0 or len(devices) == 1 or sum(needs) > sum(rooms):
            break
        if turn < LEVELLING:
            shares = _levelled(shares, needs, rooms)
        else:
            shares = _shifted(shares, needs, rooms, 2.0 ** (turn - LEVELLING))
        placed = _try(demand, ctx_size, devices, shares, rooms)
        if placed.over_bytes < best.over_bytes:
            best = placed
    return best


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


def _shifted(shares: Sequence[float], needs: Sequence[int], rooms: Sequence[int], times: float) -> list[float]:
    """Shares with what the fullest device has too much, so many *times*, moved to the one with most left."""
    spare = [left - need for need, left in zip(needs, rooms, strict=True)]
    fullest, emptiest = spare.index(min(spare)), spare.index(max(spare))
    moved = min(shares[fullest], times * max(1, -spare[fullest]) / max(1, sum(needs)))
    changed = list(shares)
    changed[fullest] -= moved
    changed[emptiest] += moved
    return _shares(changed)


def _shares(weights: Sequence[float]) -> list[float]:
    """The *weights* in proportion, rounded to what a person can read, with a sum of 1."""
    total = sum(weights)
    rounded = [round(weight / total, 4) for weight in weights]
    largest = rounded.index(max(rounded))
    rounded[largest] = round(rounded[largest] + 1.0 - sum(rounded), 4)
    return rounded
