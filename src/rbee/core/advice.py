"""What would make a demand fit that does not: each piece is checked by placing it again with that change."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from rbee.core.checks import MIN_FREE_DISK, MIN_FREE_MEMORY, MIN_FREE_VRAM, listed
from rbee.core.claims import Placement
from rbee.core.ledger import Ledger, Room
from rbee.core.placing import place
from rbee.core.sizes import setting_text, size_text
from rbee.core.verdicts import Advice, Check, Demand, Limits

CTX_STEP: Final = 256
"""Tokens; llama.cpp pads a context to a multiple of this."""

CTX_LEAST: Final = 512
"""Tokens; with less than that there is no conversation."""

SETTING_STEP: Final = 2**20
"""Bytes to which an advised setting is rounded, to the side on which it still fits."""


@dataclass(frozen=True, slots=True)
class Case:
    """A demand that does not fit: the books, and the checks of the placement that lacks least."""

    demand: Demand
    ledger: Ledger
    limits: Limits
    checks: Sequence[Check]

    def room(self, leaving: Collection[str] = ()) -> Room:
        return self.ledger.room(self.demand, self.limits, leaving)


def advise(case: Case) -> tuple[Advice, ...]:
    """The least intrusive first: another context or device, then who would have to go, then what a setting keeps."""
    found = (_less_context(case), _another_device(case), _fewer_workers(case), _another_setting(case))
    return tuple(advice for advice in found if advice is not None)


def _less_context(case: Case) -> Advice | None:
    """The largest context that fits, by bisection."""
    room = case.room()

    def fits(steps: int) -> bool:
        return place(case.demand, room, steps * CTX_STEP).fits(room)

    low, high = CTX_LEAST // CTX_STEP, (case.demand.ctx_size - 1) // CTX_STEP
    if high < low or not room.disk_fits or not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return Advice(f"It would fit with a context of {low * CTX_STEP} tokens (ctx_size).", ctx_size=low * CTX_STEP)


def _another_device(case: Case) -> Advice | None:
    """The one with most left of those that were not asked for."""
    others = replace(case.demand, devices=case.demand.others)
    rooms = case.ledger.room(others, case.limits).vram_bytes
    if not rooms:
        return None
    device = max(case.demand.others, key=lambda one: (rooms[one.index], -one.index))
    elsewhere = replace(case.demand, devices=(device,))
    room = case.ledger.room(elsewhere, case.limits)
    if not place(elsewhere, room, case.demand.ctx_size).fits(room):
        return None
    left = size_text(max(0, rooms[device.index] + case.limits.min_free_vram))
    text = f"It would fit on device {device.index} ({device.name}), which has {left} left."
    return Advice(text, device=device.index)


def _fewer_workers(case: Case) -> Advice | None:
    """The fewest idle workers that make enough room by going."""
    idle = sorted(case.ledger.idle)
    if not idle or not _fits_without(case, idle):
        return None
    found = [leaving for leaving in _leavers_by_device(case, idle) if _fits_without(case, leaving)]
    leaving = min(found, key=len) if found else _leavers_by_trial(case, idle)
    if case.demand.devices:
        # Memory and a device may lack at once; and what two make room for on one device, one of them may on two.
        leaving = _without_needless(case, leaving)
    who = f"the idle worker {leaving[0]}" if len(leaving) == 1 else f"the idle workers {listed(leaving)}"
    return Advice(f"It would fit once {who} {'is' if len(leaving) == 1 else 'are'} stopped.", stop=tuple(leaving))


def _fits_without(case: Case, leaving: Collection[str]) -> bool:
    room = case.room(leaving)
    return place(case.demand, room, case.demand.ctx_size).fits(room)


def _leavers_by_device(case: Case, idle: Collection[str]) -> Iterator[list[str]]:
    """For the CPU, or for each device alone: the fewest that make enough room there, where that can be."""
    room = case.room()
    ram_gains = case.ledger.ram.gains(idle)
    numbers = tuple(device.index for device in case.demand.devices[:1])
    need = case.demand.size(Placement(case.demand.backend, numbers, (1.0,) * len(numbers)), case.demand.ctx_size)
    for device in case.demand.devices or (None,):
        short = {"ram": need.ram.total_bytes - room.ram_bytes}
        if device is not None:
            short["vram"] = need.vram[0].total_bytes - room.vram_bytes[device.index]
        vram_gains = {} if device is None else case.ledger.vram[device.index].gains(idle)
        gains = {name: {"ram": ram_gains.get(name, 0), "vram": vram_gains.get(name, 0)} for name in idle}
        leaving = _fewest({what: lack for what, lack in short.items() if lack > 0}, gains)
        if leaving:
            yield leaving


def _fewest(short: Mapping[str, int], gains: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Workers whose *gains* cover all that is *short*, the largest first; none where all together do not."""
    if not short:
        return []

    def cover(name: str) -> float:
        return sum(min(1.0, gains[name][what] / lack) for what, lack in short.items())

    ranked = sorted(gains, key=lambda name: (-cover(name), name))
    got = dict.fromkeys(short, 0)
    chosen: list[str] = []
    for name in ranked:
        if all(got[what] >= lack for what, lack in short.items()):
            break
        chosen.append(name)
        for what in short:
            got[what] += gains[name][what]
    return chosen if all(got[what] >= lack for what, lack in short.items()) else []


def _leavers_by_trial(case: Case, idle: Sequence[str]) -> list[str]:
    """For a model on several devices: as many of those that leave most as it takes."""
    accounts = (case.ledger.ram, *(case.ledger.vram[device.index] for device in case.demand.devices))
    gains = [account.gains(idle) for account in accounts]
    ranked = sorted(idle, key=lambda name: (-sum(gain.get(name, 0) for gain in gains), name))
    low, high = 1, len(ranked)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _fits_without(case, ranked[:middle]) else (middle + 1, high)
    return ranked[:low]


def _without_needless(case: Case, leaving: Sequence[str]) -> list[str]:
    """*leaving* without those who need not go if all others do."""
    chosen = list(leaving)
    for name in reversed(leaving):
        without = [one for one in chosen if one != name]
        if _fits_without(case, without):
            chosen = without
    return chosen


def _another_setting(case: Case) -> Advice | None:
    """The value of the one setting that is in the way, where it alone is; of a margin at least half must stay."""
    lacking = [check for check in case.checks if not check.fits]
    names = {check.setting for check in lacking}
    if len(names) != 1 or "" in names:
        return None
    name, short = names.pop(), max(check.short_bytes for check in lacking)
    is_margin = name in (MIN_FREE_MEMORY, MIN_FREE_VRAM, MIN_FREE_DISK)
    if is_margin:
        value = (lacking[0].margin_bytes - short) // SETTING_STEP * SETTING_STEP
    else:
        value = -(-lacking[0].need_bytes // SETTING_STEP) * SETTING_STEP
    changed = _with_setting(case, name, value)
    room = changed.room()
    if (is_margin and 2 * value < lacking[0].margin_bytes) or not place(
        changed.demand, room, case.demand.ctx_size
    ).fits(room):
        return None
    text = f"It would fit with {name} at {setting_text(value)} or {'less' if is_margin else 'more'}."
    return Advice(text, setting=name, setting_bytes=value)


def _with_setting(case: Case, name: str, value: int) -> Case:
    if name == "max_memory_bytes":
        return replace(case, demand=replace(case.demand, limit_bytes=value))
    return replace(case, limits=replace(case.limits, **{name.removeprefix("limits."): value}))
