"""What the pool grants: nothing that does not fit, nothing twice, and back only what has come back."""

from contextlib import suppress
from dataclasses import replace

import anyio
import pytest

from rbee.core import auth
from rbee.core.claims import Peak, Placement
from rbee.core.errors import DoesNotFit, InvalidField, ModelNotFound
from rbee.core.launch import EngineOptions, Footprint, ProcessIdentity, StoredWorker
from rbee.core.model_header import ModelFacts
from rbee.core.resources import DeviceReading, EngineBuild, MemoryReading
from rbee.core.worker import Restart, WorkerSpec, WorkerState
from rbee.hive.restarts import REFUSED_DELAY
from rbee.testing import GIB, FakeHive
from tests.headers import header
from tests.unit.hive.pools import announcement, crash, ready_worker, running, settled

pytestmark = pytest.mark.anyio
S = WorkerState
MIB = 2**20


def holding(gib, **changes):
    """A worker that needs a little more than *gib* GiB of memory."""
    arguments = ("--hold-bytes", str(int(gib * GIB)))
    return WorkerSpec("", "synthetic:x", engine="synthetic", engine_args=arguments, **changes)


def room(gib):
    """A machine with so much above the margin of 2 GiB."""
    return MemoryReading(64 * GIB, int((gib + 2) * GIB))


def took(hive, record, gib):
    """Its process holds so much now, which the kernel counts as gone."""
    hive.node.footprints[record.worker.pid] = Footprint(
        int(gib * GIB), int(gib * GIB), peak_rss_bytes=int(gib * GIB), pids=(record.worker.pid,)
    )
    memory = hive.machine.memory
    hive.machine.memory = replace(memory, available_bytes=memory.available_bytes - int(gib * GIB))


def freed(hive, gib):
    memory = hive.machine.memory
    hive.machine.memory = replace(memory, available_bytes=memory.available_bytes + int(gib * GIB))


async def spawn_many(hive, count, spec):
    """So many spawns at once; those that were let in."""
    admitted = []

    async def one():
        with suppress(DoesNotFit):
            admitted.append(await hive.pool.spawn(spec))

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(one)
    return admitted


async def test_a_spawn_that_does_not_fit_starts_nothing_and_says_every_number():
    hive = FakeHive()
    hive.machine.memory = room(3.0)
    async with running(hive):
        with pytest.raises(DoesNotFit) as refused:
            await hive.pool.spawn(holding(4))
        await settled()
        assert (hive.node.launches, hive.store.history, len(hive.registry)) == ([], [], 0)
        assert hive.pool.admissions.refusals == {"ram": 1}
        (check,) = [check for check in refused.value.details["resources"] if check["resource"] == "ram"]
        assert check["free_bytes"] == 5 * GIB
        assert check["margin_bytes"] == 2 * GIB
        assert check["need_bytes"] >= 4 * GIB
        assert not check["fits"]


async def test_no_engine_is_asked_for_its_devices_for_a_worker_on_the_processor():
    """It could take a minute: the child loads the drivers of GPUs, which may hang."""
    hive = FakeHive()
    async with running(hive):
        await hive.pool.spawn(WorkerSpec("", "example", backend="cpu", engine="llama-cpp"))
        await settled()
        assert len(hive.node.launches) == 1
        assert hive.machine.asked == []
        await hive.pool.spawn(WorkerSpec("", "example", backend="auto", engine="llama-cpp"))
        assert hive.machine.asked != []


async def test_of_two_spawns_at_once_only_one_gets_the_last_memory():
    hive = FakeHive()
    hive.machine.memory = room(5)
    async with running(hive):
        assert len(await spawn_many(hive, 2, holding(3))) == 1


async def test_of_thirty_two_spawns_at_once_three_run_where_there_is_room_for_three():
    hive = FakeHive()
    hive.machine.memory = room(3.9)
    async with running(hive):
        assert len(await spawn_many(hive, 32, holding(1))) == 3
        await settled()
        assert len(hive.node.launches) == 3
        assert hive.pool.admissions.refusals["ram"] == 29


async def test_what_a_loading_worker_has_taken_already_is_not_reserved_twice():
    hive = FakeHive()
    hive.machine.memory = room(9)
    async with running(hive):
        first = await hive.pool.spawn(holding(4))
        await settled()
        # No sampling has seen it yet: it is measured when the next one is to be admitted.
        took(hive, first, 4)
        await hive.pool.spawn(holding(4))


async def test_mapped_weights_that_the_kernel_calls_available_are_not_sold_again():
    hive = FakeHive()
    hive.machine.memory = room(7)
    async with running(hive):
        first = await ready_worker(hive, holding(4))
        # All of it is resident, and the kernel would give it away.
        first.footprint = Footprint(4 * GIB, 100 * MIB, pids=(first.worker.pid,))
        with pytest.raises(DoesNotFit):
            await hive.pool.spawn(holding(4))


async def test_a_claim_is_held_while_its_worker_waits_to_restart_and_free_once_it_is_deleted():
    hive = FakeHive()
    hive.machine.memory = room(5)
    async with running(hive):
        record = await ready_worker(hive, holding(4))
        await crash(hive)
        assert record.worker.state is S.BACKOFF
        with pytest.raises(DoesNotFit):
            await hive.pool.spawn(holding(4))
        await hive.pool.delete(record.worker_id)
        await settled()
        await hive.pool.spawn(holding(4))


async def test_one_that_has_failed_for_good_holds_nothing():
    hive = FakeHive()
    hive.machine.memory = room(5)
    async with running(hive):
        record = await ready_worker(hive, holding(4, restart=Restart.NEVER))
        await crash(hive)
        assert record.worker.state is S.FAILED
        await hive.pool.spawn(holding(4))


async def test_a_restart_that_does_not_fit_waits_in_backoff_with_the_verdict_as_its_message():
    hive = FakeHive()
    hive.machine.memory = room(5)
    async with running(hive):
        record = await ready_worker(hive, holding(4))
        hive.machine.memory = room(2)
        await crash(hive)
        await anyio.sleep(1.5)
        await settled()
        worker = record.worker
        assert (worker.state, worker.restart_count, len(hive.node.launches)) == (S.BACKOFF, 0, 1)
        assert worker.message.startswith(f"Not restarted yet, asked again in {REFUSED_DELAY:.0f} s: ")
        assert "limits.min_free_memory" in worker.message
        assert record.claim is not None

        hive.machine.memory = room(5)
        await anyio.sleep(REFUSED_DELAY)
        await settled()
        assert (record.worker.state, len(hive.node.launches)) == (S.STARTING, 2)


async def test_a_refused_restart_is_asked_for_again_as_soon_as_another_worker_leaves():
    hive = FakeHive()
    hive.machine.memory = room(9)
    async with running(hive):
        other = await ready_worker(hive, holding(4))
        record = await ready_worker(hive, holding(4))
        hive.machine.memory = room(7)
        await crash(hive)
        await anyio.sleep(1.5)
        assert record.worker.message.startswith("Not restarted yet")
        await hive.pool.delete(other.worker_id)
        await settled()
        assert record.worker.state is S.STARTING


async def test_a_restart_by_hand_is_admitted_again_too():
    hive = FakeHive()
    hive.machine.memory = room(5)
    async with running(hive):
        record = await ready_worker(hive, holding(4))
        hive.machine.memory = room(2)
        await hive.pool.restart(record.worker_id)
        await settled()
        assert (record.worker.state, len(hive.node.launches)) == (S.BACKOFF, 1)
        assert "limits.min_free_memory" in record.worker.message


async def test_a_restart_does_not_count_its_own_claim_against_itself():
    hive = FakeHive()
    hive.machine.memory = room(5)
    async with running(hive):
        record = await ready_worker(hive, holding(4))
        await crash(hive)
        await anyio.sleep(1.5)
        await settled()
        assert (record.worker.state, len(hive.node.launches)) == (S.STARTING, 2)


async def test_the_next_hive_knows_the_claims_of_the_workers_that_it_takes_over():
    hive = FakeHive()
    hive.machine.memory = room(5)
    async with running(hive):
        record = await ready_worker(hive, holding(4))
        await settled()
    row = hive.store.rows[record.worker_id]
    assert row.claim == record.claim

    successor = FakeHive(store=hive.store)
    successor.machine.memory = room(5)
    assert row.identity is not None
    successor.node.add_living(row.identity)
    async with running(successor):
        assert successor.registry.get(record.worker_id).claim == record.claim
        with pytest.raises(DoesNotFit):
            await successor.pool.spawn(holding(4))


async def test_a_row_that_says_nothing_of_a_claim_gets_one_if_its_worker_lives():
    hive = FakeHive()
    identity = ProcessIdentity(4242, 1, "boot")
    hive.node.add_living(identity)
    row = StoredWorker(replace(holding(4), worker_id="w-old"), 1, identity)
    hive.store.rows["w-old"] = row
    async with running(hive):
        claim = hive.registry.get("w-old").claim
        assert claim is not None
        assert claim.need.ram.total_bytes >= 4 * GIB


async def test_the_order_of_refusals_is_field_then_floor_then_model():
    hive = FakeHive()
    hive.machine.memory = MemoryReading(64 * GIB, GIB)
    hive.library.missing.add("file:/nowhere.gguf")
    missing = WorkerSpec("", "file:/nowhere.gguf")
    async with running(hive):
        with pytest.raises(InvalidField):
            await hive.pool.spawn(replace(missing, backend="abacus"))
        with pytest.raises(DoesNotFit) as refused:
            await hive.pool.spawn(missing)
        assert "limits.min_free_memory" in refused.value.message
        hive.machine.memory = room(5)
        with pytest.raises(ModelNotFound):
            await hive.pool.spawn(missing)


async def test_considering_a_spawn_starts_and_claims_nothing():
    hive = FakeHive()
    hive.machine.memory = room(5)
    async with running(hive):
        assert (await hive.pool.consider(holding(4))).fits
        assert not (await hive.pool.consider(holding(6))).fits
        assert (len(hive.registry), hive.node.launches) == (0, [])
        assert not hive.pool.admissions.refusals


async def test_a_model_that_would_have_to_be_fetched_is_checked_against_the_disk():
    hive = FakeHive()
    spec = WorkerSpec("", "hf:org/repo")
    async with running(hive):
        assert (await hive.pool.consider(spec, download_bytes=5 * GIB)).fits
        hive.machine.disk = replace(hive.machine.disk, free_bytes=12 * GIB)
        verdict = await hive.pool.consider(spec, download_bytes=5 * GIB)
        assert [str(resource) for resource in verdict.lacking] == ["disk"]


async def test_mapped_pages_of_a_worker_that_was_started_by_hand_are_not_sold_either():
    hive = FakeHive()
    hive.machine.memory = room(5)
    async with running(hive):
        survey = await hive.pool.admissions.survey()
        assert survey.holdings == ()
        said = await external_worker(hive)
        said.footprint = Footprint(4 * GIB, 50 * MIB, pids=(4711,))
        with pytest.raises(DoesNotFit):
            await hive.pool.spawn(holding(2))


async def external_worker(hive):
    said = announcement("by-hand", pid=4711, model_ref="synthetic:y")
    hive.node.add_other(4711)
    return await hive.reception.announce(auth.Principal(auth.Role.ADMIN, trusted=False), said)


# What was measured.


async def test_the_most_that_a_worker_was_seen_to_take_replaces_a_lower_estimate():
    hive = FakeHive()
    async with running(hive):
        record = await ready_worker(hive, holding(1))
        record.footprint = Footprint(3 * GIB, 3 * GIB, peak_rss_bytes=3 * GIB, pids=(record.worker.pid,))
        await hive.pool.admissions.note_measured()
        await settled()
        assert [peak.ram_bytes for peak in hive.peaks.saved.values()] == [3 * GIB]
        again = await hive.pool.spawn(holding(1))
        assert again.claim is not None
        assert (again.claim.need.ram.total_bytes, again.claim.need.source) == (3 * GIB, "measured")
        other = await hive.pool.spawn(holding(2))
        assert other.claim is not None
        assert other.claim.need.source != "measured"


async def test_the_peaks_of_an_earlier_hive_count():
    before = FakeHive()
    async with running(before):
        record = await ready_worker(before, holding(1))
        record.footprint = Footprint(3 * GIB, 3 * GIB, peak_rss_bytes=3 * GIB)
        await before.pool.admissions.note_measured()
        await settled()
    hive = FakeHive(peaks=before.peaks)
    async with running(hive):
        await hive.pool.admissions.peaks.load()
        spawned = await hive.pool.spawn(holding(1))
        assert spawned.claim is not None
        assert spawned.claim.need.ram.total_bytes == 3 * GIB


async def test_a_peak_above_the_limit_does_not_forbid_the_model_for_ever():
    hive = FakeHive()
    async with running(hive):
        record = await ready_worker(hive, holding(1))
        record.footprint = Footprint(20 * GIB, 20 * GIB, peak_rss_bytes=20 * GIB)
        await hive.pool.admissions.note_measured()
        await settled()
        await hive.pool.spawn(holding(1))


async def test_a_peak_that_hardly_grows_is_not_written_again():
    hive = FakeHive()
    async with running(hive):
        record = await ready_worker(hive, holding(1))
        for grown in (0, 1 * MIB):
            record.footprint = Footprint(peak_rss_bytes=3 * GIB + grown)
            await hive.pool.admissions.note_measured()
            await settled()
        assert list(hive.peaks.saved.values()) == [Peak(3 * GIB)]


async def test_another_model_under_the_same_name_does_not_inherit_a_peak():
    hive = FakeHive()
    spec = WorkerSpec("", "file:/models/model.gguf")
    hive.sizer.size_bytes = 5 * GIB
    async with running(hive):
        record = await ready_worker(hive, spec)
        hive.sizer.size_bytes = 1 * GIB
        record.footprint = Footprint(7 * GIB, 7 * GIB, peak_rss_bytes=7 * GIB)
        await hive.pool.admissions.note_measured()
        smaller = await hive.pool.consider(spec)
        hive.sizer.size_bytes = 5 * GIB
        same = await hive.pool.consider(spec)
    assert smaller.claim.need.ram.total_bytes < 2 * GIB
    assert same.claim.need.ram.total_bytes == 7 * GIB


async def test_the_peak_of_a_worker_that_was_taken_over_counts_too():
    hive = FakeHive()
    spec = WorkerSpec("", "file:/models/model.gguf")
    hive.sizer.size_bytes = 5 * GIB
    async with running(hive):
        record = await ready_worker(hive, spec)
        record.model_bytes = None
        record.footprint = Footprint(7 * GIB, 7 * GIB, peak_rss_bytes=7 * GIB)
        await hive.pool.admissions.note_measured()
        await settled()
        assert record.model_bytes == 5 * GIB
        await hive.pool.admissions.note_measured()
        again = await hive.pool.consider(spec)
    assert again.claim.need.ram.total_bytes == 7 * GIB


async def test_the_map_that_a_model_passes_through_on_its_way_to_a_device_is_no_peak_of_memory():
    hive = FakeHive()
    hive.machine.devices = (gpu(0, 20),)
    async with running(hive):
        record = await ready_worker(hive, on_gpu(4))
        record.footprint = Footprint(1 * GIB, 300 * MIB, locked_bytes=50 * MIB, peak_rss_bytes=5 * GIB)
        await hive.pool.admissions.note_measured()
        await settled()
        assert [peak.ram_bytes for peak in hive.peaks.saved.values()] == [350 * MIB]


async def test_a_peak_with_one_context_says_nothing_of_a_smaller_one():
    hive = FakeHive()
    path = "/models/long.gguf"
    # 32 KiB of keys and values a token: 2 GiB with 64 k of them.
    hive.sizer.known[path] = ModelFacts(GIB, header(("Q8_0", GIB), kv_heads=(64,), key_length=128, value_length=128))
    spec = WorkerSpec("", f"file:{path}", ctx_size=65_536, slots=1)
    async with running(hive):
        record = await ready_worker(hive, spec)
        record.footprint = Footprint(peak_rss_bytes=6 * GIB)
        await hive.pool.admissions.note_measured()
        await hive.pool.delete(record.worker_id)
        await settled()
        hive.machine.memory = room(4)
        verdict = await hive.pool.consider(spec)
        assert (verdict.fits, verdict.claim.need.ram.total_bytes) == (False, 6 * GIB)
        (advised,) = [advice.ctx_size for advice in verdict.advice if advice.ctx_size]
        assert (await hive.pool.consider(replace(spec, ctx_size=advised))).fits


# How a model is loaded.


def repacked(hive):
    """A model whose weights the processor copies."""
    path = "/models/repacked.gguf"
    hive.sizer.known[path] = ModelFacts(GIB, header(("Q4_0", GIB)))
    return WorkerSpec("", f"file:{path}", ctx_size=512, slots=1)


@pytest.mark.parametrize(("asked", "added", "gib"), [((), ("--no-mmap",), 1), (("--mmap",), (), 2)])
async def test_a_model_is_loaded_as_it_was_counted(asked, added, gib):
    hive = FakeHive()
    spec = replace(repacked(hive), engine_args=asked)
    async with running(hive):
        record = await hive.pool.spawn(spec)
        await settled()
        launch = hive.node.launches[-1]
        assert (launch.added_engine_args, launch.spec.engine_args) == (added, asked)
        assert record.claim.need.ram.weights_bytes == gib * GIB


async def test_another_engine_is_told_nothing_of_how_to_load_a_model():
    hive = FakeHive()
    hive.options.engines["vllm"] = EngineOptions(("vllm", "serve", "{model}"))
    async with running(hive):
        await hive.pool.spawn(replace(repacked(hive), engine="vllm"))
        await settled()
        assert hive.node.launches[-1].added_engine_args == ()


# Devices.


def gpu(index, free_gib, held=None, **changes):
    return DeviceReading("cuda", index, "A GPU", 24 * GIB, int(free_gib * GIB), f"GPU-{index}", held, **changes)


def on_gpu(gib, **changes):
    """A worker that needs *gib* GiB of video memory."""
    arguments = ("--vram-bytes", str(int(gib * GIB)))
    backend = changes.pop("backend", "cuda")
    return WorkerSpec("", "synthetic:x", backend, engine="synthetic", engine_args=arguments, **changes)


async def test_a_worker_goes_to_the_device_with_most_left_and_is_told_its_name():
    hive = FakeHive()
    hive.machine.devices = (gpu(0, 6), gpu(1, 20))
    async with running(hive):
        record = await hive.pool.spawn(on_gpu(4))
        await settled()
        launch = hive.node.launches[-1]
        assert (record.placement, launch.placement) == (Placement("cuda", (1,), (1.0,)),) * 2
        assert launch.device_uuids == ("GPU-1",)


async def test_video_memory_that_a_loading_worker_will_take_is_not_given_to_another():
    hive = FakeHive()
    hive.machine.devices = (gpu(0, 10),)
    async with running(hive):
        assert len(await spawn_many(hive, 4, on_gpu(4))) == 2
        assert hive.pool.admissions.refusals["vram"] == 2


async def test_video_memory_that_a_driver_shows_as_taken_is_not_reserved_again():
    hive = FakeHive()
    hive.machine.devices = (gpu(0, 10, held={}),)
    async with running(hive):
        record = await ready_worker(hive, on_gpu(4))
        pid = record.worker.pid
        record.footprint = hive.node.footprints[pid] = Footprint(pids=(pid,))
        hive.machine.devices = (gpu(0, 6, held={pid: 4 * GIB}),)
        await hive.pool.spawn(on_gpu(4))
        await hive.pool.admissions.note_measured()
        await settled()
        assert record.vram == {0: 4 * GIB}


async def test_a_claim_on_a_device_is_given_up_once_its_memory_is_seen_free():
    hive = FakeHive()
    hive.machine.devices = (gpu(0, 5.5, held={}),)
    async with running(hive):
        record = await ready_worker(hive, on_gpu(4))
        pid = record.worker.pid
        record.footprint, record.pids = Footprint(pids=(pid,)), (pid,)
        hive.machine.devices = (gpu(0, 1.5, held={pid: 4 * GIB}),)
        await hive.pool.delete(record.worker_id)
        await settled()
        assert record.worker_id not in hive.registry
        assert record.worker_id in hive.registry.departed
        hive.machine.devices = (gpu(0, 5.5, held={}),)
        with pytest.raises(DoesNotFit):
            await hive.pool.spawn(on_gpu(4))
        await anyio.sleep(0.3)
        await settled()
        assert hive.registry.departed == {}
        await hive.pool.spawn(on_gpu(4))


async def test_a_claim_is_given_up_after_five_seconds_whatever_the_driver_says():
    hive = FakeHive()
    hive.machine.devices = (gpu(0, 20, held={}),)
    async with running(hive):
        record = await ready_worker(hive, on_gpu(4))
        pid = record.worker.pid
        record.footprint, record.pids = Footprint(pids=(pid,)), (pid,)
        hive.machine.devices = (gpu(0, 16, held={pid: 4 * GIB}),)
        await hive.pool.delete(record.worker_id)
        await anyio.sleep(4.5)
        assert record.worker_id in hive.registry.departed
        await anyio.sleep(1)
        assert hive.registry.departed == {}


async def test_a_device_that_names_no_processes_has_given_back_when_it_gives_back_no_more():
    hive = FakeHive()
    hive.machine.devices = (gpu(0, 20),)
    async with running(hive):
        record = await ready_worker(hive, on_gpu(4))
        await hive.pool.delete(record.worker_id)
        await settled()
        assert record.worker_id in hive.registry.departed
        await anyio.sleep(0.3)
        await settled()
        assert hive.registry.departed == {}


async def test_a_worker_whose_device_has_fallen_off_waits_and_says_so():
    hive = FakeHive()
    hive.machine.devices = (gpu(0, 20), gpu(1, 10))
    async with running(hive):
        record = await ready_worker(hive, on_gpu(4, device=0))
        hive.machine.devices = (gpu(1, 10),)
        await crash(hive)
        await anyio.sleep(1.5)
        await settled()
        assert record.worker.state is S.BACKOFF
        assert record.worker.message.startswith("Not restarted yet")
        assert "device 0" in record.worker.message


async def test_a_worker_of_any_device_moves_to_another_when_its_own_has_fallen_off():
    hive = FakeHive()
    hive.machine.devices = (gpu(0, 20), gpu(1, 10))
    async with running(hive):
        record = await ready_worker(hive, on_gpu(4))
        assert record.placement.devices == (0,)
        hive.machine.devices = (gpu(1, 10),)
        await crash(hive)
        await anyio.sleep(1.5)
        await settled()
        assert record.placement.devices == (1,)
        assert hive.node.launches[-1].device_uuids == ("GPU-1",)


async def test_a_machine_with_a_gpu_and_an_engine_without_one_gets_no_processor_in_silence():
    hive = FakeHive()
    hive.machine.devices = (gpu(0, 20),)
    hive.machine.builds[""] = EngineBuild()
    async with running(hive):
        with pytest.raises(InvalidField) as refused:
            await hive.pool.spawn(WorkerSpec("", "file:/m.gguf", "auto"))
        assert refused.value.details["field"] == "backend"
        await hive.pool.spawn(WorkerSpec("", "file:/m.gguf", "cpu"))


async def test_a_machine_that_cannot_be_read_refuses_nobody_by_accident_and_keeps_running():
    hive = FakeHive()
    async with running(hive):
        record = await ready_worker(hive, holding(1))
        hive.machine.fail = OSError("too many open files")
        await crash(hive)
        await anyio.sleep(1.5)
        await settled()
        assert record.worker.state is S.BACKOFF
        assert "too many open files" in record.worker.message
        hive.machine.fail = None
        await anyio.sleep(REFUSED_DELAY)
        await settled()
        assert record.worker.state is S.STARTING
