"""What is free, what of that is promised already, and to whom: the books from which admission reads what is left."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from rbee.core.claims import Holding
from rbee.core.resources import DeviceReading, MachineReading, state_reserve
from rbee.core.verdicts import MAX_HOLDERS, Demand, Limits, Share


@dataclass(frozen=True, slots=True)
class Account:
    """One resource. ``entries``: who has a claim on it, how much, and how much of that is taken already."""

    free_bytes: int
    entries: tuple[tuple[Holding, int, int], ...] = ()

    @property
    def reserved_bytes(self) -> int:
        return sum([claimed - held for _, claimed, held in self.entries if claimed > held])

    def shares(self) -> tuple[Share, ...]:
        """Of the MAX_HOLDERS who may still take most; among equals, of who has most."""
        ranked = sorted(self.entries, key=lambda entry: (min(0, entry[2] - entry[1]), -entry[1], entry[0].worker_id))
        return tuple(Share(one.worker_id, one.model_ref, claimed, held) for one, claimed, held in ranked[:MAX_HOLDERS])

    def gains(self, workers: Collection[str]) -> dict[str, int]:
        """What each of these *workers* would leave: what it has taken, and what it may still take."""
        return {one.worker_id: max(claimed, held) for one, claimed, held in self.entries if one.worker_id in workers}


@dataclass(frozen=True, slots=True)
class Room:
    """The most that a new worker may take, bytes; less than nothing where not even the margin is left.

    ``vram_bytes``: by the number of each device that it may use, none for the CPU.
    """

    ram_bytes: int
    vram_bytes: Mapping[int, int] = field(default_factory=dict)
    disk_fits: bool = True


@dataclass(frozen=True, slots=True)
class Ledger:
    """The accounts that one demand is checked against; its own claim is in none of them."""

    machine: MachineReading
    ram: Account
    vram: Mapping[int, Account] = field(default_factory=dict)
    idle: frozenset[str] = frozenset()

    def room(self, demand: Demand, limits: Limits, leaving: Collection[str] = ()) -> Room:
        """What *demand* may take under these *limits*, once the workers of *leaving* are gone."""
        # The limit holds for one worker, whatever leaves.
        ram = _left(self.ram, leaving) - limits.min_free_memory
        return Room(
            min(ram, self.ram_limits(demand, limits)[0][0]),
            {device.index: _left(self.vram[device.index], leaving) - limits.min_free_vram for device in demand.devices},
            self.state_disk_fits(limits) and self.models_disk_fits(demand, limits),
        )

    @staticmethod
    def ram_limits(demand: Demand, limits: Limits) -> list[tuple[int, str]]:
        """The most that one worker may have, bytes, and the name of what says so; the least first."""
        own = [] if demand.limit_bytes is None else [(demand.limit_bytes, "max_memory_bytes")]
        return sorted([*own, (limits.max_worker_memory, "limits.max_worker_memory")])

    def state_disk_fits(self, limits: Limits) -> bool:
        return self.machine.state_disk.free_bytes - limits.log_bytes >= state_reserve(self.machine.state_disk)

    def models_disk_fits(self, demand: Demand, limits: Limits) -> bool:
        if demand.download_bytes == 0:
            return True
        return self.machine.models_disk.free_bytes - demand.download_bytes >= limits.min_free_disk


def open_ledger(demand: Demand, machine: MachineReading, holdings: Sequence[Holding]) -> Ledger:
    """The books for this *demand*: of host memory, and of each device that it may use or be advised to use."""
    others = [holding for holding in holdings if holding.worker_id != demand.worker_id]
    devices = (*demand.devices, *demand.others)
    return Ledger(
        machine,
        ram_account(machine, others),
        vram_accounts(devices, machine, others) if devices else {},
        frozenset(holding.worker_id for holding in others if holding.is_idle),
    )


def ram_account(machine: MachineReading, holdings: Sequence[Holding]) -> Account:
    """Host memory. The kernel counts mapped weights as available, so what was promised for them stays promised."""
    entries = tuple((holding, holding.claim.need.ram.total_bytes, holding.ram_bytes) for holding in holdings)
    return Account(machine.memory.free_bytes, entries)


def vram_accounts(
    devices: Sequence[DeviceReading], machine: MachineReading, holdings: Sequence[Holding]
) -> dict[int, Account]:
    """Of each of these *devices*, all of one backend. A card that two backends reach is one account for both, where
    its identity is told."""
    identities: dict[tuple[str, int], object] = {}
    for device in (*machine.devices, *devices):
        identities[device.backend, device.index] = device.uuid or (device.backend, device.index)
    claims: dict[object, list[tuple[Holding, int, int]]] = {}
    for holding in holdings:
        placement = holding.claim.placement
        for number, parts in zip(placement.devices, holding.claim.need.vram, strict=True):
            place = placement.backend, number
            claims.setdefault(identities.get(place, place), []).append((holding, parts.total_bytes, number))
    return {
        device.index: _device_account(device, claims.get(identities[device.backend, device.index], ()))
        for device in devices
    }


def _device_account(device: DeviceReading, claims: Sequence[tuple[Holding, int, int]]) -> Account:
    entries = tuple((holding, claimed, _held(device, holding, claimed, number)) for holding, claimed, number in claims)
    return Account(device.free_bytes, entries)


def _held(device: DeviceReading, holding: Holding, claimed: int, number: int) -> int:
    """What of a claim the device's ``free_bytes`` lacks already."""
    if not device.is_live:
        # It was read before any worker took some.
        return 0
    if holding.vram_bytes is not None:
        return holding.vram_bytes.get(number, 0)
    return claimed if holding.is_settled else 0


def _left(account: Account, leaving: Collection[str]) -> int:
    return account.free_bytes - account.reserved_bytes + sum(account.gains(leaving).values() if leaving else ())
