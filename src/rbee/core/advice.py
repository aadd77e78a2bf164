"""What would make a demand fit that does not: each piece is checked by placing it again with that change."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from rbee.core.checks import MIN_FREE_DISK, MIN_FREE_MEMORY, MIN_FREE_VRAM, listed
from rbee.core.claims import Need, Placement
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

PATIENCE: Final = 32
"""How often one piece of advice may ask what a model needs, which takes some 0.05 ms, and all spawns wait for it."""


class _Sizes:
    """What a demand needs, each division asked for once: it is the same whichever devices they are.

    ``left``: how many more may be asked for; who sees none left makes do with what is found.
    """

    def __init__(self, demand: Demand) -> None:
        self.left = PATIENCE
        self._size = demand.size
        self._known: dict[tuple[tuple[float, ...], int], Need] = {}

    def __call__(self, placement: Placement, ctx_size: int) -> Need:
        key = placement.split, ctx_size
        if key not in self._known:
            self.left -= 1
            self._known[key] = self._size(placement, ctx_size)
        return self._known[key]


@dataclass(frozen=True, slots=True)
class Case:
    """A demand that does not fit: the books, and the checks of the placement that lacks least."""

    demand: Demand
    ledger: Ledger
    limits: Limits
    checks: Sequence[Check]
    sizes: _Sizes

    def room(self, leaving: Collection[str] = ()) -> Room:
        return self.ledger.room(self.demand, self.limits, leaving)

    def whole(self, ctx_size: int) -> Need:
        """What it needs undivided."""
        numbers = tuple(device.index for device in self.demand.devices[:1])
        return self.sizes(Placement(self.demand.backend, numbers, (1.0,) * len(numbers)), ctx_size)

    def fits(self, room: Room, ctx_size: int) -> bool:
        """Never true where it would not fit; a division that only just fits may be missed."""
        whole = self.whole(ctx_size)
        # Divided it takes no less, neither of host memory nor of the devices together.
        if whole.ram.total_bytes > room.ram_bytes or not room.disk_fits:
            return False
        if whole.vram and whole.vram[0].total_bytes > sum(left for left in room.vram_bytes.values() if left > 0):
            return False
        return place(self.demand, room, ctx_size, is_thorough=False).fits(room)


def advise(demand: Demand, ledger: Ledger, limits: Limits, checks: Sequence[Check]) -> tuple[Advice, ...]:
    """The least intrusive first: another context or device, then who would have to go, then what a setting keeps.

    *checks*: of the placement that lacks least.
    """
    sizes = _Sizes(demand)
    case = Case(replace(demand, size=sizes), ledger, limits, checks, sizes)
    found = []
    for piece in (_less_context, _another_device, _fewer_workers, _another_setting):
        sizes.left = PATIENCE
        found.append(piece(case))
    return tuple(advice for advice in found if advice is not None)


def _less_context(case: Case) -> Advice | None:
    """The largest context that fits, by bisection."""
    room = case.room()
    low, high = CTX_LEAST // CTX_STEP, (case.demand.ctx_size - 1) // CTX_STEP
    if high < low or not case.fits(room, low * CTX_STEP):
        return None
    while low < high and case.sizes.left > 0:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if case.fits(room, middle * CTX_STEP) else (low, middle - 1)
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
    found = list(_leavers_by_device(case, idle))
    leaving = min(found, key=len) if found else _leavers_by_trial(case, idle)
    if case.demand.devices:
        # Memory and a device may lack at once; and what two make room for on one device, one of them may on two.
        leaving = _without_needless(case, leaving)
    who = f"the idle worker {leaving[0]}" if len(leaving) == 1 else f"the idle workers {listed(leaving)}"
    return Advice(f"It would fit once {who} {'is' if len(leaving) == 1 else 'are'} stopped.", stop=tuple(leaving))


def _fits_without(case: Case, leaving: Collection[str]) -> bool:
    return case.fits(case.room(frozenset(leaving)), case.demand.ctx_size)


def _leavers_by_device(case: Case, idle: Collection[str]) -> Iterator[list[str]]:
    """For the CPU, or for each device alone: the fewest that make enough room there, where that can be.

    These sums are the ledger's own, so who is named suffices.
    """
    room = case.room()
    leavers = frozenset(idle)
    ram_gains = case.ledger.ram.gains(leavers)
    need = case.whole(case.demand.ctx_size)
    for device in case.demand.devices or (None,):
        short = {"ram": need.ram.total_bytes - room.ram_bytes}
        if device is not None:
            short["vram"] = need.vram[0].total_bytes - room.vram_bytes[device.index]
        vram_gains = {} if device is None else case.ledger.vram[device.index].gains(leavers)
        gains = {name: {"ram": ram_gains.get(name, 0), "vram": vram_gains.get(name, 0)} for name in idle}
        leaving = _fewest({what: lack for what, lack in short.items() if lack > 0}, gains)
        if leaving:
            yield leaving


def _fewest(short: Mapping[str, int], gains: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Workers whose *gains* cover all that is *short*, the largest first; none where all together do not."""
    if not short or any(sum(gain[what] for gain in gains.values()) < lack for what, lack in short.items()):
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
    return chosen


def _leavers_by_trial(case: Case, idle: Sequence[str]) -> list[str]:
    """For a model on several devices: as many of those that leave most as it takes."""
    accounts = (case.ledger.ram, *(case.ledger.vram[device.index] for device in case.demand.devices))
    leavers = frozenset(idle)
    gains = [account.gains(leavers) for account in accounts]
    ranked = sorted(idle, key=lambda name: (-sum(gain.get(name, 0) for gain in gains), name))
    low, high = 1, len(ranked)
    while low < high and case.sizes.left > 0:
        middle = (low + high) // 2
        low, high = (low, middle) if _fits_without(case, ranked[:middle]) else (middle + 1, high)
    return ranked[:high]


def _without_needless(case: Case, leaving: Sequence[str]) -> list[str]:
    """*leaving* without those who need not go if all others do, as far as patience reaches."""
    chosen = list(leaving)
    for name in reversed(leaving):
        if case.sizes.left <= 0:
            break
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
    is_halved = is_margin and 2 * value < lacking[0].margin_bytes
    if is_halved or not changed.fits(changed.room(), case.demand.ctx_size):
        return None
    text = f"It would fit with {name} at {setting_text(value)} or {'less' if is_margin else 'more'}."
    return Advice(text, setting=name, setting_bytes=value)


def _with_setting(case: Case, name: str, value: int) -> Case:
    if name == "max_memory_bytes":
        return replace(case, demand=replace(case.demand, limit_bytes=value))
    return replace(case, limits=replace(case.limits, **{name.removeprefix("limits."): value}))
