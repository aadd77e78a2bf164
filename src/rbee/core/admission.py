"""Whether a worker fits: every number of the answer, and what would make it fit."""

from collections.abc import Sequence
from typing import Any, Final

from rbee.core.advice import advise
from rbee.core.checks import (
    floor_check,
    listed,
    models_disk_check,
    no_device_check,
    ram_check,
    state_disk_check,
    vram_check,
)
from rbee.core.claims import Claim, Holding, Placement
from rbee.core.ledger import Ledger, Room, open_ledger, ram_account
from rbee.core.placing import Placed, place
from rbee.core.resources import MachineReading
from rbee.core.verdicts import Advice, Check, Demand, Limits, Resource, Share, Verdict

__all__ = ["Advice", "Check", "Demand", "Limits", "Resource", "Share", "Verdict", "decide", "floor", "floor_details"]


NAMED_DEVICES: Final = 2
"""How many devices with too little memory a message tells of; the verdict has them all."""


def decide(demand: Demand, machine: MachineReading, holdings: Sequence[Holding], limits: Limits) -> Verdict:
    """Whether the demand fits beside what is held."""
    ledger = open_ledger(demand, machine, holdings)
    room = ledger.room(demand, limits)
    placed = place(demand, room, demand.ctx_size)
    checks = _checks(demand, ledger, limits, placed)
    fits = all(check.fits for check in checks)
    advice: tuple[Advice, ...] = ()
    if not fits and (demand.devices or demand.backend == "cpu"):
        advice = advise(demand, ledger, limits, checks)
    if placed.over_bytes:
        checks += _checks_elsewhere(demand, ledger, limits, placed, room)
    claim = Claim(placed.placement, placed.need)
    message = _message(demand, placed.placement, checks, advice)
    return Verdict(fits, demand.model_ref, demand.ctx_size, claim, checks, advice, message)


def floor(machine: MachineReading, holdings: Sequence[Holding], limits: Limits) -> Check:
    """Whether even the memory that must stay free is left, before anything is known of a model."""
    return floor_check(ram_account(machine, holdings), limits)


def floor_details(check: Check) -> dict[str, Any]:
    """What a 507 says where nothing is known of the model yet: the same names as in ``Verdict.details``."""
    return {"fits": check.fits, "message": check.reason, "resources": [check.details()]}


def _checks(demand: Demand, ledger: Ledger, limits: Limits, placed: Placed) -> tuple[Check, ...]:
    """Of host memory, each device of the placement, and the disks."""
    checks = [ram_check(demand, ledger, limits, placed.need.ram.total_bytes)]
    readings = {device.index: device for device in demand.devices}
    for number, parts in zip(placed.placement.devices, placed.need.vram, strict=True):
        checks.append(vram_check(readings[number], ledger.vram[number], limits, parts.total_bytes))
    if not demand.devices and demand.backend != "cpu":
        checks.append(no_device_check(demand.backend))
    checks.append(state_disk_check(ledger, limits))
    if demand.download_bytes:
        checks.append(models_disk_check(demand, ledger, limits))
    return tuple(checks)


def _checks_elsewhere(demand: Demand, ledger: Ledger, limits: Limits, placed: Placed, room: Room) -> tuple[Check, ...]:
    """Of the devices that were looked at and not taken: what the whole model would need there."""
    whole = demand.size(Placement(demand.backend, (demand.devices[0].index,), (1.0,)), demand.ctx_size)
    return tuple(
        vram_check(device, ledger.vram[device.index], limits, whole.vram[0].total_bytes)
        for device in demand.devices
        if device.index not in placed.placement.devices
    )


def _message(demand: Demand, placement: Placement, checks: Sequence[Check], advice: Sequence[Advice]) -> str:
    what = f"{demand.model_ref} with a context of {demand.ctx_size} tokens"
    numbers = [str(number) for number in placement.devices]
    lacking = [check for check in checks if not check.fits]
    if not lacking:
        return f"{what} fits on {f'{placement.backend} {listed(numbers)}' if numbers else 'the CPU'}."
    devices = [check for check in lacking if check.device is not None]
    told = [check.reason for check in lacking if check not in devices[NAMED_DEVICES:]]
    untold = len(devices) - NAMED_DEVICES
    if untold > 0:
        told.append(f"{untold} more {'device has' if untold == 1 else 'devices have'} too little left.")
    return " ".join([f"{what} does not fit.", *told, *(one.text for one in advice)])
