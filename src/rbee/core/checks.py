"""One check a resource: the numbers, and the sentence that says them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from rbee.core.ledger import Account, Ledger
from rbee.core.resources import DeviceReading, state_reserve
from rbee.core.sizes import size_text
from rbee.core.verdicts import MAX_HOLDERS, Check, Demand, Limits, Resource

MIN_FREE_MEMORY: Final = "limits.min_free_memory"
MIN_FREE_VRAM: Final = "limits.min_free_vram"
MIN_FREE_DISK: Final = "limits.min_free_disk"

NAMED: Final = 3
"""How many workers a sentence names; the others are counted."""


def ram_check(demand: Demand, ledger: Ledger, limits: Limits, need_bytes: int) -> Check:
    bounds = ledger.ram_limits(demand, limits)
    asked = _asked(Resource.RAM, ledger.ram, need_bytes, limits.min_free_memory)
    return _judged(replace(asked, limit_bytes=bounds[0][0]), "Memory", MIN_FREE_MEMORY, bounds)


def floor_check(ram: Account, limits: Limits) -> Check:
    """Whether the margin alone is left of host memory."""
    return _judged(_asked(Resource.RAM, ram, 0, limits.min_free_memory), "No worker fits now. Memory", MIN_FREE_MEMORY)


def vram_check(device: DeviceReading, account: Account, limits: Limits, need_bytes: int) -> Check:
    where = f"{device.name} ({device.backend}:{device.index})"
    asked = _asked(Resource.VRAM, account, need_bytes, limits.min_free_vram)
    return _judged(replace(asked, device=device.index, where=where), f"Video memory of {where}", MIN_FREE_VRAM)


def no_device_check(backend: str) -> Check:
    """For a backend without a device: one that a worker was placed on may be gone when it is started again."""
    reason = f"Video memory: no device of the backend {backend} is there."
    return Check(Resource.VRAM, 0, 0, 0, 0, fits=False, reason=reason, where=backend)


def state_disk_check(ledger: Ledger, limits: Limits) -> Check:
    """Room for one log; no setting is in the way there, only files are."""
    disk = ledger.machine.state_disk
    asked = _asked(Resource.DISK, Account(disk.free_bytes), limits.log_bytes, state_reserve(disk))
    return _judged(replace(asked, where=disk.path), f"Disk of {disk.path}, for a log", "")


def models_disk_check(demand: Demand, ledger: Ledger, limits: Limits) -> Check:
    disk = ledger.machine.models_disk
    asked = _asked(Resource.DISK, Account(disk.free_bytes), demand.download_bytes, limits.min_free_disk)
    return _judged(replace(asked, where=disk.path), f"Disk of {disk.path}, for the download", MIN_FREE_DISK)


def listed(names: Sequence[str], unnamed: int = 0) -> str:
    """``a``, ``a and b``, ``a, b and c``, ``a, b, c and 4 more``; *unnamed* ones are there beside the *names*."""
    more = max(0, len(names) - NAMED) + unnamed
    shown = [*names[:NAMED], *([f"{more} more"] if more else [])]
    return " and ".join(filter(None, (", ".join(shown[:-1]), *shown[-1:])))


def _asked(resource: Resource, account: Account, need_bytes: int, margin_bytes: int) -> Check:
    return Check(
        resource,
        need_bytes,
        account.free_bytes,
        account.reserved_bytes,
        margin_bytes,
        fits=False,
        reason="",
        holders=account.shares(),
        holders_left_out=max(0, len(account.entries) - MAX_HOLDERS),
    )


def _judged(check: Check, subject: str, margin_setting: str, bounds: Sequence[tuple[int, str]] = ()) -> Check:
    """The *check* with its outcome, the setting that is in the way, and a sentence about *subject*.

    *bounds*: bytes that one worker may have at most and what says so, the least first.
    """
    missing = check.need_bytes + check.margin_bytes + check.reserved_bytes - check.free_bytes
    exceeded = [(name, f"{name} allows a worker {size_text(size)}") for size, name in bounds if check.need_bytes > size]
    setting, need = "", f"{size_text(check.need_bytes)} needed, " if check.need_bytes else ""
    balance = _balance(check, margin_setting, missing)
    if exceeded:
        setting = exceeded[0][0]
        limits = f"and {' and '.join(words for _, words in exceeded)}"
        balance = f"{limits}; {balance}" if missing > 0 else limits
    elif 0 < missing <= check.margin_bytes:
        setting = margin_setting
    reason = f"{subject}: {need}{balance}."
    return replace(check, fits=not exceeded and missing <= 0, reason=reason, setting=setting)


def _balance(check: Check, margin_setting: str, missing: int) -> str:
    left = f"{size_text(check.left_bytes)} left"
    if check.reserved_bytes:
        left += f" ({size_text(check.free_bytes)} free, {size_text(check.reserved_bytes)} reserved for "
        left += f"{_reservers(check)})"
    source = f" ({margin_setting})" if margin_setting else ""
    short = f", {size_text(missing)} missing" if missing > 0 else ""
    return f"{left}, {size_text(check.margin_bytes)} must stay free{source}{short}"


def _reservers(check: Check) -> str:
    names = [share.worker_id for share in check.holders if share.reserved_bytes]
    # The holders are sorted by what they reserved: only where all that are there did may more have done so.
    return listed(names, check.holders_left_out if len(names) == MAX_HOLDERS else 0)
