"""From a survey to what GET /v1/resources shows of it."""

from collections.abc import Iterable, Mapping

from rbee.control.admission_schemas import (
    Amounts,
    DeviceResource,
    DiskResource,
    DisksResource,
    EngineResource,
    Measured,
    MemoryResource,
    ResourcesView,
    WorkerResource,
)
from rbee.core.admission import Limits
from rbee.core.claims import Holding
from rbee.core.ledger import Account, ram_account, vram_accounts
from rbee.core.resources import DeviceReading, DiskReading, EngineBuild, MachineReading, state_reserve
from rbee.core.routing import RouteTable
from rbee.hive.admissions import Survey
from rbee.hive.registry import Record, Registry

Accounts = Mapping[tuple[str, int], Account]


def resources_view(
    survey: Survey,
    registry: Registry,
    routes: RouteTable,
    limits: Limits,
    builds: Mapping[str, EngineBuild],
    now: float,
) -> ResourcesView:
    """*now* is the hive's monotonic clock, seconds; *builds*: what each engine that can be asked was built for."""
    machine, ram = survey.machine, ram_account(survey.machine, survey.holdings)
    devices = _known_devices(machine, builds.values())
    accounts = _accounts(devices, survey)
    return ResourcesView(
        memory=_memory(machine, ram, limits),
        devices=[_device(one, accounts[one.backend, one.index], survey.holdings, limits) for one in devices],
        disks=DisksResource(
            models=_disk(machine.models_disk, limits.min_free_disk),
            state=_disk(machine.state_disk, limits.log_bytes + state_reserve(machine.state_disk)),
        ),
        workers=[
            _worker(holding, registry.find(holding.worker_id), routes.in_flight(holding.worker_id), ram, accounts)
            for holding in survey.holdings
        ],
        engines=[
            EngineResource(
                engine=name,
                devices=[{"backend": one.backend, "index": one.index, "name": one.name} for one in build.devices],
                problem=build.problem,
            )
            for name, build in builds.items()
        ],
        read_age_seconds=round(max(0.0, now - machine.at), 3),
    )


def _known_devices(machine: MachineReading, builds: Iterable[EngineBuild]) -> list[DeviceReading]:
    """What drivers report; then what an engine's build found that no driver of ours reads."""
    known = {(device.backend, device.index): device for device in machine.devices}
    read = {device.backend for device in machine.devices}
    for build in builds:
        for device in build.devices:
            if device.backend not in read:
                known.setdefault((device.backend, device.index), device)
    return list(known.values())


def _accounts(devices: list[DeviceReading], survey: Survey) -> dict[tuple[str, int], Account]:
    accounts = {}
    for backend in dict.fromkeys(device.backend for device in devices):
        alike = [device for device in devices if device.backend == backend]
        for index, account in vram_accounts(alike, survey.machine, survey.holdings).items():
            accounts[backend, index] = account
    return accounts


def _memory(machine: MachineReading, ram: Account, limits: Limits) -> MemoryResource:
    memory = machine.memory
    return MemoryResource(
        total_bytes=memory.total_bytes,
        available_bytes=memory.available_bytes,
        group_limit_bytes=memory.group_limit_bytes,
        group_left_bytes=memory.group_left_bytes,
        free_bytes=memory.free_bytes,
        reserved_bytes=ram.reserved_bytes,
        left_bytes=max(0, ram.free_bytes - ram.reserved_bytes),
        margin_bytes=limits.min_free_memory,
    )


def _device(device: DeviceReading, account: Account, holdings: Iterable[Holding], limits: Limits) -> DeviceResource:
    ours = None
    if device.held is not None:
        ours = sum((h.vram_bytes or {}).get(device.index, 0) for h in holdings if _is_on(h, device))
    return DeviceResource(
        backend=device.backend,
        index=device.index,
        name=device.name,
        uuid=device.uuid,
        total_bytes=device.total_bytes,
        free_bytes=device.free_bytes,
        reserved_bytes=account.reserved_bytes,
        left_bytes=max(0, device.free_bytes - account.reserved_bytes),
        margin_bytes=limits.min_free_vram,
        ours_bytes=ours,
        others_bytes=None if ours is None else max(0, device.total_bytes - device.free_bytes - ours),
        is_live=device.is_live,
    )


def _is_on(holding: Holding, device: DeviceReading) -> bool:
    placement = holding.claim.placement
    return placement.backend == device.backend and device.index in placement.devices


def _disk(disk: DiskReading, margin_bytes: int) -> DiskResource:
    return DiskResource(
        path=disk.path, total_bytes=disk.total_bytes, free_bytes=disk.free_bytes, margin_bytes=margin_bytes
    )


def _worker(
    holding: Holding, record: Record | None, in_flight: int, ram: Account, accounts: Accounts
) -> WorkerResource:
    claim = holding.claim
    backend, devices = claim.placement.backend, claim.placement.devices
    footprint = None if record is None else record.footprint
    seen = holding.vram_bytes
    return WorkerResource(
        worker_id=holding.worker_id,
        model_ref=holding.model_ref,
        # One that is gone keeps its claim until what it held is seen to be free again.
        state="gone" if record is None else record.worker.shown_state(in_flight),
        backend=backend,
        devices=list(devices),
        source=str(claim.need.source),
        claimed=Amounts(
            ram_bytes=claim.need.ram.total_bytes, vram_bytes=[parts.total_bytes for parts in claim.need.vram]
        ),
        reserved=Amounts(
            ram_bytes=_reserved(ram, holding),
            vram_bytes=[
                _reserved(accounts[backend, device], holding) if (backend, device) in accounts else 0
                for device in devices
            ],
        ),
        measured=Measured(
            rss_bytes=footprint and footprint.rss_bytes,
            private_bytes=footprint and footprint.private_bytes,
            peak_rss_bytes=footprint and footprint.peak_rss_bytes,
            vram_bytes=None if seen is None else [seen.get(device, 0) for device in devices],
        ),
    )


def _reserved(account: Account, holding: Holding) -> int:
    """What *holding* may still take of one resource."""
    return sum(max(0, claimed - held) for one, claimed, held in account.entries if one is holding)
