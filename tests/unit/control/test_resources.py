"""GET /v1/resources and POST /v1/admission, asked without HTTP, with a pool on a jumping clock behind them."""

from types import SimpleNamespace

import anyio
import pytest
from pydantic import ValidationError

from rbee.control import resources, workers
from rbee.control.admission_schemas import AdmissionRequest
from rbee.core.claims import Claim, Need, Parts, Placement
from rbee.core.errors import BadModelReference, InvalidField
from rbee.core.launch import Footprint
from rbee.core.resources import DeviceReading, DiskReading, EngineBuild, MemoryReading
from rbee.core.worker import WorkerSpec
from rbee.hive.orders import Defaults
from rbee.testing import FakeHive
from tests.unit.hive.pools import ready_worker, running, settled

pytestmark = pytest.mark.anyio
MIB, GIB = 2**20, 2**30
HOLDING = ("--hold-bytes", str(GIB))
SPEC = WorkerSpec(worker_id="", model_ref="synthetic:x", engine="synthetic", engine_args=HOLDING)


def here(hive):
    return SimpleNamespace(
        pool=hive.pool,
        registry=hive.registry,
        routes=hive.routes,
        defaults=Defaults(),
        limits=hive.options.limits,
    )


def asked(**fields):
    return AdmissionRequest(**{"model_ref": "synthetic:x", "engine_args": list(HOLDING), **fields})


async def grant(hive, vram_bytes=6 * GIB):
    """A ready worker whose claim is moved to the GPU, with what a driver tells of it."""
    record = await ready_worker(hive, SPEC)
    need = Need(Parts(weights_bytes=2 * GIB), (Parts(weights_bytes=vram_bytes),))
    record.claim = Claim(Placement("cuda", (0,), (1.0,)), need)
    footprint = Footprint(GIB, 512 * MIB, peak_rss_bytes=3 * GIB, pids=(1000,))
    record.footprint = hive.node.footprints[1000] = footprint
    return record


def gpu(**changes):
    fields = {"uuid": "GPU-a", "held": {1000: 4 * GIB, 7: GIB}, **changes}
    return DeviceReading("cuda", 0, "L4", 24 * GIB, 18 * GIB, **fields)


async def test_a_verdict_comes_with_every_number_and_nothing_is_started():
    async with running(FakeHive()) as hive:
        hive.machine.memory = MemoryReading(16 * GIB, 4 * GIB)
        view = await resources.admission(asked(), here(hive))
        assert (view.fits, view.model_ref, view.backend, view.devices, view.source) == (
            True,
            "synthetic:x",
            "cpu",
            [],
            "stated",
        )
        ram = view.resources[0]
        assert (ram.resource, ram.free_bytes, ram.margin_bytes, ram.limit_bytes) == ("ram", 4 * GIB, 2 * GIB, 8 * GIB)
        assert ram.need_bytes == view.need.ram["total_bytes"] > GIB
        assert len(hive.registry) == 0
        assert hive.node.launches == []


async def test_what_does_not_fit_is_an_answer_like_any_other():
    async with running(FakeHive()) as hive:
        hive.machine.memory = MemoryReading(16 * GIB, 5 * GIB // 2)
        view = await resources.admission(asked(), here(hive))
        assert not view.fits
        assert view.message.startswith("synthetic:x with a context of 4096 tokens does not fit. Memory: ")


async def test_a_verdict_counts_the_download():
    async with running(FakeHive()) as hive:
        hive.machine.disk = DiskReading("/models", 100 * GIB, 15 * GIB)
        view = await resources.admission(asked(download_bytes=6 * GIB), here(hive))
        assert [check.resource for check in view.resources if not check.fits] == ["disk"]


@pytest.mark.parametrize(
    ("fields", "error"),
    [({"model_ref": "nonsense"}, BadModelReference), ({"backend": "abacus"}, InvalidField)],
)
async def test_what_a_spawn_would_refuse_outright_is_refused_here_too(fields, error):
    async with running(FakeHive()) as hive:
        with pytest.raises(error):
            await resources.admission(asked(**fields), here(hive))


def test_a_negative_download_is_no_download():
    with pytest.raises(ValidationError):
        asked(download_bytes=-1)


async def test_memory_and_disks_are_shown_with_what_must_stay_free():
    async with running(FakeHive()) as hive:
        hive.machine.memory = MemoryReading(64 * GIB, 60 * GIB, 10 * GIB, 9 * GIB)
        await grant(hive)
        view = await resources.resources(here(hive))
        assert view.memory.model_dump() == {
            "total_bytes": 64 * GIB,
            "available_bytes": 60 * GIB,
            "group_limit_bytes": 10 * GIB,
            "group_left_bytes": 9 * GIB,
            "free_bytes": 9 * GIB,
            "reserved_bytes": 1536 * MIB,
            "left_bytes": 9 * GIB - 1536 * MIB,
            "margin_bytes": 2 * GIB,
        }
        assert (view.disks.models.margin_bytes, view.disks.state.margin_bytes) == (10 * GIB, 64 * MIB)
        assert view.read_age_seconds == 0.0


async def test_a_device_shows_what_is_reserved_and_who_else_uses_it():
    async with running(FakeHive()) as hive:
        hive.machine.devices = (gpu(),)
        await grant(hive)
        (device,) = (await resources.resources(here(hive))).devices
        assert (device.backend, device.index, device.name, device.uuid) == ("cuda", 0, "L4", "GPU-a")
        assert (device.reserved_bytes, device.left_bytes, device.margin_bytes) == (2 * GIB, 16 * GIB, GIB)
        assert (device.ours_bytes, device.others_bytes) == (4 * GIB, 2 * GIB)


async def test_what_a_driver_does_not_tell_is_null():
    async with running(FakeHive()) as hive:
        hive.machine.devices = (gpu(held=None),)
        await grant(hive)
        view = await resources.resources(here(hive))
        assert (view.devices[0].ours_bytes, view.devices[0].others_bytes) == (None, None)
        assert view.workers[0].measured.vram_bytes is None


async def test_each_worker_shows_what_it_claimed_reserves_and_holds():
    async with running(FakeHive()) as hive:
        hive.machine.devices = (gpu(),)
        record = await grant(hive)
        (worker,) = (await resources.resources(here(hive))).workers
        assert worker.model_dump() == {
            "worker_id": record.worker_id,
            "model_ref": "synthetic:x",
            "state": "idle",
            "backend": "cuda",
            "devices": [0],
            "source": "estimate",
            "claimed": {"ram_bytes": 2 * GIB, "vram_bytes": [6 * GIB]},
            "reserved": {"ram_bytes": 1536 * MIB, "vram_bytes": [2 * GIB]},
            "measured": {
                "rss_bytes": GIB,
                "private_bytes": 512 * MIB,
                "peak_rss_bytes": 3 * GIB,
                "vram_bytes": [4 * GIB],
            },
        }


async def test_a_worker_with_a_request_in_flight_is_busy_there_too():
    async with running(FakeHive()) as hive:
        record = await ready_worker(hive, SPEC)
        hive.routes.acquire(record.worker_id)
        (worker,) = (await resources.resources(here(hive))).workers
        assert worker.state == "busy"


async def test_a_worker_on_a_device_that_is_gone_is_still_shown():
    async with running(FakeHive()) as hive:
        await grant(hive)
        view = await resources.resources(here(hive))
        assert view.devices == []
        assert view.workers[0].reserved.vram_bytes == [0]


async def test_what_engines_can_use_is_shown_with_the_devices_that_no_driver_of_ours_reads():
    async with running(FakeHive()) as hive:
        arc = DeviceReading("vulkan", 0, "Arc", 16 * GIB, 15 * GIB, is_live=False)
        hive.machine.devices = (gpu(),)
        hive.machine.builds[""] = EngineBuild((arc, gpu()))
        view = await resources.resources(here(hive))
        assert [(device.backend, device.is_live) for device in view.devices] == [("cuda", True), ("vulkan", False)]
        (engine,) = view.engines
        assert (engine.engine, engine.problem) == ("llama-cpp", "")
        assert engine.devices[0] == {"backend": "vulkan", "index": 0, "name": "Arc"}


async def test_a_workers_record_names_its_devices_and_its_claim():
    async with running(FakeHive()) as hive:
        hive.machine.devices = (gpu(),)
        record = await grant(hive)
        record.vram = {0: 4 * GIB}
        await anyio.sleep(1)
        await settled()
        view = await workers.worker(record.worker_id, here(hive))
        assert (view.backend, view.device, view.devices) == ("cuda", 0, [0])
        assert view.claim.model_dump() == {
            "ram_bytes": 2 * GIB,
            "ram_weights_bytes": 2 * GIB,
            "vram_bytes": [6 * GIB],
            "vram_weights_bytes": [6 * GIB],
            "source": "estimate",
        }
        assert view.memory.vram_bytes == 4 * GIB
