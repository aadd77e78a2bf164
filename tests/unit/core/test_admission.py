"""What admission answers, number by number. One machine: 16 GiB of memory, 12 of them free, two GPUs of 24 GiB."""

import json
from dataclasses import replace

import pytest

from rbee.core.admission import Demand, Limits, Resource, decide, floor
from rbee.core.claims import Claim, Holding, Need, Parts, Placement, Source
from rbee.core.resources import DeviceReading, DiskReading, MachineReading, MemoryReading
from rbee.core.sizes import setting_text, size_text

MIB, GIB = 2**20, 2**30
LIMITS = Limits(8 * GIB, 2 * GIB, GIB, 10 * GIB, log_bytes=10 * MIB)
GPUS = (
    DeviceReading("cuda", 0, "L4", 24 * GIB, 20 * GIB, uuid="GPU-a"),
    DeviceReading("cuda", 1, "L4", 24 * GIB, 22 * GIB, uuid="GPU-b"),
)
MACHINE = MachineReading(
    at=0.0,
    memory=MemoryReading(16 * GIB, 12 * GIB),
    models_disk=DiskReading("/models", 100 * GIB, 30 * GIB),
    state_disk=DiskReading("/state", 10 * GIB, GIB),
    devices=GPUS,
)


def in_memory(ram_bytes, per_token=0):
    """A model for the CPU: so much, and *per_token* bytes for each token of its context."""
    return lambda placement, ctx_size: Need(Parts(weights_bytes=ram_bytes, kv_cache_bytes=per_token * ctx_size))


def on_devices(vram_bytes, ram_bytes=GIB, layers=0, overhead=0, per_token=0):
    """A model for GPUs, divided by the split: in whole *layers* where there are any, each device with an *overhead*."""

    def size(placement, ctx_size):
        shares = [round(share * layers) / layers for share in placement.split] if layers else placement.split
        whole = vram_bytes + per_token * ctx_size
        vram = tuple(Parts(weights_bytes=round(share * whole), overhead_bytes=overhead) for share in shares)
        return Need(Parts(overhead_bytes=ram_bytes), vram)

    return size


def for_cpu(size, **changes):
    return Demand("synthetic:x", "cpu", (), 4096, size, **changes)


def for_gpu(size, devices=GPUS, **changes):
    return Demand("synthetic:x", "cuda", devices, 4096, size, **changes)


def holding(worker_id, ram_bytes=0, held=0, vram=None, **changes):
    """A worker with a claim on memory, *held* of it taken; *vram*: its claim by device."""
    vram = vram or {}
    placement = Placement("cuda", tuple(vram), (1.0,) * len(vram)) if vram else Placement()
    need = Need(Parts(weights_bytes=ram_bytes), tuple(Parts(weights_bytes=size) for size in vram.values()))
    return Holding(worker_id, "synthetic:y", Claim(placement, need), held, **changes)


def check_of(verdict, resource, device=None):
    return next(one for one in verdict.checks if (one.resource, one.device) == (resource, device))


def advised(verdict):
    return [advice.text for advice in verdict.advice]


def test_what_fits_is_granted_with_its_numbers():
    verdict = decide(for_cpu(in_memory(3 * GIB)), MACHINE, [], LIMITS)
    assert verdict.fits
    assert verdict.lacking == verdict.advice == ()
    assert verdict.claim == Claim(Placement(), Need(Parts(weights_bytes=3 * GIB)))
    assert verdict.message == "synthetic:x with a context of 4096 tokens fits on the CPU."
    check = check_of(verdict, Resource.RAM)
    assert (check.need_bytes, check.free_bytes, check.reserved_bytes, check.left_bytes) == (
        3 * GIB,
        12 * GIB,
        0,
        12 * GIB,
    )
    assert (check.margin_bytes, check.limit_bytes, check.short_bytes, check.setting) == (2 * GIB, 8 * GIB, 0, "")
    assert check.reason == "Memory: 3.00 GiB needed, 12.00 GiB left, 2.00 GiB must stay free (limits.min_free_memory)."


def test_the_last_byte_above_the_margin_may_be_taken_and_no_other():
    roomy = replace(LIMITS, max_worker_memory=64 * GIB)
    assert decide(for_cpu(in_memory(10 * GIB)), MACHINE, [], roomy).fits
    assert not decide(for_cpu(in_memory(10 * GIB + 1)), MACHINE, [], roomy).fits


def test_what_is_claimed_and_not_taken_yet_is_not_left():
    """Mapped weights stay available for the kernel; whoever was promised memory for them keeps the promise."""
    held = [holding("w-1", 6 * GIB, 50 * MIB), holding("w-2", 2 * GIB, 3 * GIB)]
    verdict = decide(for_cpu(in_memory(5 * GIB)), MACHINE, held, LIMITS)
    check = check_of(verdict, Resource.RAM)
    assert check.reserved_bytes == 6 * GIB - 50 * MIB
    assert check.reason == (
        "Memory: 5.00 GiB needed, 6.05 GiB left (12.00 GiB free, 5.95 GiB reserved for w-1), 2.00 GiB must stay free "
        "(limits.min_free_memory), 974 MiB missing."
    )
    assert [(share.worker_id, share.claimed_bytes, share.held_bytes) for share in check.holders] == [
        ("w-1", 6 * GIB, 50 * MIB),
        ("w-2", 2 * GIB, 3 * GIB),
    ]


def test_a_cgroup_that_leaves_less_counts():
    machine = replace(MACHINE, memory=MemoryReading(16 * GIB, 12 * GIB, 4 * GIB, 3 * GIB))
    check = check_of(decide(for_cpu(in_memory(2 * GIB)), machine, [], LIMITS), Resource.RAM)
    assert (check.free_bytes, check.fits, check.short_bytes) == (3 * GIB, False, GIB)


def test_more_promised_than_free_leaves_nothing_and_less_than_nothing_is_never_told():
    machine = replace(MACHINE, memory=MemoryReading(16 * GIB, GIB))
    check = check_of(decide(for_cpu(in_memory(MIB)), machine, [holding("w-1", 3 * GIB)], LIMITS), Resource.RAM)
    assert (check.left_bytes, check.short_bytes) == (0, 4 * GIB + MIB)
    assert "0 bytes left (1.00 GiB free, 3.00 GiB reserved for w-1)" in check.reason


def test_what_no_worker_may_have_names_the_limit():
    verdict = decide(for_cpu(in_memory(9 * GIB)), MACHINE, [], LIMITS)
    assert verdict.message == (
        "synthetic:x with a context of 4096 tokens does not fit. Memory: 9.00 GiB needed, and limits.max_worker_memory "
        "allows a worker 8.00 GiB. It would fit with limits.max_worker_memory at 9GiB or more."
    )
    assert check_of(verdict, Resource.RAM).setting == "limits.max_worker_memory"
    assert (verdict.advice[0].setting, verdict.advice[0].setting_bytes) == ("limits.max_worker_memory", 9 * GIB)


def test_the_workers_own_limit_is_named_where_it_is_the_smaller_one():
    verdict = decide(for_cpu(in_memory(5 * GIB), limit_bytes=4 * GIB), MACHINE, [], LIMITS)
    assert "max_memory_bytes allows a worker 4.00 GiB" in verdict.message
    assert advised(verdict) == ["It would fit with max_memory_bytes at 5GiB or more."]


def test_two_limits_that_are_in_the_way_are_both_named_and_none_of_them_advised_alone():
    verdict = decide(for_cpu(in_memory(9 * GIB), limit_bytes=4 * GIB), MACHINE, [], LIMITS)
    assert verdict.message.endswith(
        "Memory: 9.00 GiB needed, and max_memory_bytes allows a worker 4.00 GiB and limits.max_worker_memory allows a "
        "worker 8.00 GiB."
    )
    assert check_of(verdict, Resource.RAM).setting == "max_memory_bytes"
    assert advised(verdict) == []


def test_a_limit_is_advised_rounded_up():
    verdict = decide(for_cpu(in_memory(5 * GIB + 1), limit_bytes=GIB), MACHINE, [], LIMITS)
    assert advised(verdict) == ["It would fit with max_memory_bytes at 5121MiB or more."]


def test_a_limit_is_not_advised_where_the_machine_has_too_little_anyway():
    verdict = decide(for_cpu(in_memory(11 * GIB)), MACHINE, [], LIMITS)
    assert advised(verdict) == []
    assert verdict.message.endswith(
        "does not fit. Memory: 11.00 GiB needed, and limits.max_worker_memory allows a worker 8.00 GiB; 12.00 GiB "
        "left, 2.00 GiB must stay free (limits.min_free_memory), 1.00 GiB missing."
    )


def test_a_margin_that_alone_is_in_the_way_is_advised_rounded_to_the_safe_side():
    machine = replace(MACHINE, memory=MemoryReading(16 * GIB, 6 * GIB))
    verdict = decide(for_cpu(in_memory(4608 * MIB + 1)), machine, [], LIMITS)
    assert advised(verdict) == ["It would fit with limits.min_free_memory at 1535MiB or less."]


def test_no_margin_is_given_up_by_more_than_half():
    machine = replace(MACHINE, memory=MemoryReading(16 * GIB, 6 * GIB))
    verdict = decide(for_cpu(in_memory(5 * GIB + 1)), machine, [], LIMITS)
    assert check_of(verdict, Resource.RAM).setting == "limits.min_free_memory"
    assert advised(verdict) == []


def test_the_floor_is_told_before_anything_is_known_of_a_model():
    assert floor(MACHINE, [], LIMITS).fits
    check = floor(MACHINE, [holding("w-1", 11 * GIB)], LIMITS)
    assert not check.fits
    assert check.reason == (
        "No worker fits now. Memory: 1.00 GiB left (12.00 GiB free, 11.00 GiB reserved for w-1), 2.00 GiB must stay "
        "free (limits.min_free_memory), 1.00 GiB missing."
    )


def test_its_own_claim_does_not_count_against_a_worker_that_is_started_again():
    held = [holding("w-1", 6 * GIB), holding("w-2", 3 * GIB)]
    assert not decide(for_cpu(in_memory(6 * GIB)), MACHINE, held, LIMITS).fits
    verdict = decide(for_cpu(in_memory(6 * GIB), worker_id="w-1"), MACHINE, held, LIMITS)
    assert verdict.fits
    assert [share.worker_id for share in check_of(verdict, Resource.RAM).holders] == ["w-2"]


def test_the_device_with_most_left_is_taken():
    assert decide(for_gpu(on_devices(4 * GIB)), MACHINE, [], LIMITS).claim.placement == Placement("cuda", (1,), (1.0,))
    busy = [holding("w-1", vram={1: 10 * GIB})]
    verdict = decide(for_gpu(on_devices(4 * GIB)), MACHINE, busy, LIMITS)
    assert verdict.claim.placement.devices == (0,)
    assert verdict.message == "synthetic:x with a context of 4096 tokens fits on cuda 0."


def test_what_a_worker_has_taken_on_a_device_is_not_reserved_twice():
    seen = holding("w-1", vram={1: 10 * GIB}, vram_bytes={1: 9 * GIB})
    check = check_of(decide(for_gpu(on_devices(GIB), GPUS[1:]), MACHINE, [seen], LIMITS), Resource.VRAM, 1)
    assert (check.free_bytes, check.reserved_bytes) == (22 * GIB, GIB)
    assert (check.holders[0].claimed_bytes, check.holders[0].held_bytes) == (10 * GIB, 9 * GIB)


@pytest.mark.parametrize(("is_settled", "reserved"), [(True, 0), (False, 10 * GIB)])
def test_where_a_driver_does_not_tell_a_loaded_worker_has_all_of_its_claim(is_settled, reserved):
    unseen = holding("w-1", vram={1: 10 * GIB}, is_settled=is_settled)
    check = check_of(decide(for_gpu(on_devices(GIB), GPUS[1:]), MACHINE, [unseen], LIMITS), Resource.VRAM, 1)
    assert check.reserved_bytes == reserved


def test_a_reading_from_before_any_worker_reserves_whole_claims():
    device = DeviceReading("vulkan", 0, "Arc", 16 * GIB, 15 * GIB, is_live=False)
    claim = Claim(Placement("vulkan", (0,), (1.0,)), Need(Parts(), (Parts(weights_bytes=10 * GIB),)))
    held = Holding("w-1", "m", claim, vram_bytes={0: 10 * GIB}, is_settled=True)
    demand = Demand("m", "vulkan", (device,), 4096, on_devices(5 * GIB))
    check = check_of(decide(demand, MACHINE, [held], LIMITS), Resource.VRAM, 0)
    assert (check.reserved_bytes, check.fits) == (10 * GIB, False)


def test_one_card_under_two_backends_is_not_given_away_twice():
    same = DeviceReading("vulkan", 3, "L4", 24 * GIB, 22 * GIB, uuid="GPU-b", is_live=False)
    demand = Demand("m", "vulkan", (same,), 4096, on_devices(14 * GIB))
    assert decide(demand, MACHINE, [], LIMITS).fits
    assert not decide(demand, MACHINE, [holding("w-1", vram={1: 10 * GIB})], LIMITS).fits


def test_a_model_too_large_for_one_device_is_divided_by_what_is_left():
    verdict = decide(for_gpu(on_devices(32 * GIB)), MACHINE, [], LIMITS)
    assert verdict.fits
    assert verdict.claim.placement == Placement("cuda", (0, 1), (0.475, 0.525))
    assert [parts.total_bytes for parts in verdict.claim.need.vram] == [round(32 * GIB * x) for x in (0.475, 0.525)]
    assert verdict.message.endswith("fits on cuda 0 and 1.")


def test_no_more_devices_are_taken_than_suffice():
    gpus = tuple(DeviceReading("cuda", i, "L4", 24 * GIB, (10 + i) * GIB) for i in range(8))
    verdict = decide(for_gpu(on_devices(40 * GIB), gpus), replace(MACHINE, devices=gpus), [], LIMITS)
    assert verdict.fits
    assert verdict.claim.placement.devices == (5, 6, 7)


def test_a_split_that_misses_for_whole_layers_is_moved_until_it_fits():
    """Two layers of 8 GiB: half each fits, what is in proportion to 9 and 23 GiB does not."""
    gpus = (replace(GPUS[0], free_bytes=10 * GIB), replace(GPUS[1], free_bytes=24 * GIB))
    size = on_devices(24 * GIB, layers=3, overhead=GIB // 4)
    verdict = decide(for_gpu(size, gpus), MACHINE, [], LIMITS)
    assert verdict.fits
    assert [parts.weights_bytes for parts in verdict.claim.need.vram] == [8 * GIB, 16 * GIB]


def test_a_gpu_model_never_goes_to_the_cpu():
    verdict = decide(for_gpu(on_devices(60 * GIB)), MACHINE, [], LIMITS)
    assert not verdict.fits
    assert verdict.claim.placement.backend == "cuda"
    assert verdict.claim.placement.devices == (0, 1)
    assert verdict.lacking == (Resource.VRAM,)


def test_a_backend_whose_device_is_gone_is_refused_and_says_so():
    verdict = decide(for_gpu(lambda placement, ctx_size: Need(Parts()), ()), MACHINE, [], LIMITS)
    assert not verdict.fits
    assert verdict.message.endswith("does not fit. Video memory: no device of the backend cuda is there.")


def test_every_device_that_was_looked_at_is_in_a_refusal():
    machine = replace(MACHINE, memory=MemoryReading(16 * GIB, 12 * GIB))
    size = on_devices(10 * GIB)
    tight = tuple(replace(gpu, free_bytes=free) for gpu, free in zip(GPUS, (GIB, 2 * GIB), strict=True))
    verdict = decide(for_gpu(size, tight), machine, [], LIMITS)
    assert [(check.device, check.fits) for check in verdict.checks if check.resource is Resource.VRAM] == [
        (1, False),
        (0, False),
    ]
    assert check_of(verdict, Resource.VRAM, 1).where == "L4 (cuda:1)"
    assert check_of(verdict, Resource.VRAM, 1).reason == (
        "Video memory of L4 (cuda:1): 10.00 GiB needed, 2.00 GiB left, 1.00 GiB must stay free "
        "(limits.min_free_vram), 9.00 GiB missing."
    )


def test_a_message_tells_of_two_devices_and_counts_the_others():
    gpus = tuple(DeviceReading("cuda", i, "L4", 24 * GIB, 2 * GIB) for i in range(8))
    verdict = decide(for_gpu(on_devices(100 * GIB), gpus), replace(MACHINE, devices=gpus), [], LIMITS)
    assert verdict.message.count("Video memory of") == 2
    assert "6 more devices have too little left." in verdict.message


def test_disk_must_keep_room_for_a_log():
    machine = replace(MACHINE, state_disk=DiskReading("/state", 10 * GIB, 73 * MIB))
    verdict = decide(for_cpu(in_memory(GIB)), machine, [], LIMITS)
    assert verdict.lacking == (Resource.DISK,)
    assert check_of(verdict, Resource.DISK).reason == (
        "Disk of /state, for a log: 10 MiB needed, 73 MiB left, 64 MiB must stay free, 1 MiB missing."
    )
    assert advised(verdict) == []


def test_a_download_must_leave_the_disk_its_margin():
    assert decide(for_cpu(in_memory(GIB), download_bytes=20 * GIB), MACHINE, [], LIMITS).fits
    verdict = decide(for_cpu(in_memory(GIB), download_bytes=21 * GIB), MACHINE, [], LIMITS)
    assert verdict.checks[-1].reason == (
        "Disk of /models, for the download: 21.00 GiB needed, 30.00 GiB left, 10.00 GiB must stay free "
        "(limits.min_free_disk), 1.00 GiB missing."
    )
    assert advised(verdict) == ["It would fit with limits.min_free_disk at 9GiB or less."]


def test_the_largest_context_that_fits_is_advised():
    verdict = decide(for_cpu(in_memory(4 * GIB, per_token=MIB)), MACHINE, [holding("w-1", 2 * GIB)], LIMITS)
    assert verdict.fits
    tight = replace(MACHINE, memory=MemoryReading(16 * GIB, 9 * GIB))
    verdict = decide(for_cpu(in_memory(4 * GIB, per_token=MIB)), tight, [], LIMITS)
    assert [advice.ctx_size for advice in verdict.advice] == [3072, None]
    assert advised(verdict)[0] == "It would fit with a context of 3072 tokens (ctx_size)."


def test_a_context_below_512_is_never_advised():
    demand = for_cpu(in_memory(GIB, per_token=32 * MIB))
    assert [advice.ctx_size for advice in decide(demand, MACHINE, [], LIMITS).advice] == []
    small = replace(demand, ctx_size=300)
    assert [advice.ctx_size for advice in decide(small, MACHINE, [], LIMITS).advice if advice.ctx_size] == []


def test_another_device_is_advised_where_it_would_do():
    demand = for_gpu(on_devices(20 * GIB), GPUS[:1], others=GPUS[1:])
    verdict = decide(demand, MACHINE, [], LIMITS)
    assert advised(verdict)[0] == "It would fit on device 1 (L4), which has 22.00 GiB left."
    assert verdict.advice[0].device == 1
    taken = [holding("w-1", vram={1: 10 * GIB})]
    assert not any(advice.device for advice in decide(demand, MACHINE, taken, LIMITS).advice)


def test_the_fewest_idle_workers_are_named_and_busy_ones_never():
    held = [
        holding("small", GIB, GIB, is_idle=True),
        holding("large", 3 * GIB, 0, is_idle=True),
        holding("busy", 4 * GIB),
    ]
    verdict = decide(for_cpu(in_memory(5 * GIB)), MACHINE, held, LIMITS)
    assert advised(verdict) == ["It would fit once the idle worker large is stopped."]
    assert verdict.advice[0].stop == ("large",)


def test_who_leaves_gives_back_what_it_took_beyond_its_claim():
    held = [holding("w-1", GIB, 4 * GIB, is_idle=True)]
    tight = replace(MACHINE, memory=MemoryReading(16 * GIB, 3 * GIB))
    verdict = decide(for_cpu(in_memory(5 * GIB)), tight, held, LIMITS)
    assert advised(verdict) == ["It would fit once the idle worker w-1 is stopped."]


def test_nobody_is_named_where_stopping_all_idle_ones_would_not_do():
    held = [holding("idle", 2 * GIB, is_idle=True), holding("busy", 6 * GIB)]
    assert (
        advised(
            decide(for_cpu(in_memory(5 * GIB)), replace(MACHINE, memory=MemoryReading(16 * GIB, 8 * GIB)), held, LIMITS)
        )
        == []
    )


def test_the_device_from_which_fewest_would_have_to_go_counts():
    held = [
        holding("a", vram={1: 8 * GIB}, vram_bytes={1: 8 * GIB}, is_idle=True),
        holding("b", vram={1: 8 * GIB}, vram_bytes={1: 8 * GIB}, is_idle=True),
        holding("c", vram={0: 15 * GIB}, vram_bytes={0: 15 * GIB}, is_idle=True),
    ]
    gpus = (replace(GPUS[0], free_bytes=5 * GIB), replace(GPUS[1], free_bytes=6 * GIB))
    verdict = decide(for_gpu(on_devices(18 * GIB), gpus), MACHINE, held, LIMITS)
    assert [advice.stop for advice in verdict.advice if advice.stop] == [("c",)]


def test_who_covers_most_stays_where_two_others_are_needed_anyway():
    held = [
        holding("both", 3 * GIB, vram={0: 3 * GIB}, is_idle=True),
        holding("memory", 4 * GIB, is_idle=True),
        holding("video", vram={0: 4 * GIB}, is_idle=True),
    ]
    machine = replace(MACHINE, memory=MemoryReading(16 * GIB, 9 * GIB))
    gpu = replace(GPUS[0], free_bytes=8 * GIB)
    verdict = decide(for_gpu(on_devices(4 * GIB, ram_bytes=4 * GIB), (gpu,)), machine, held, LIMITS)
    assert [advice.stop for advice in verdict.advice if advice.stop] == [("memory", "video")]


def test_workers_on_several_devices_are_named_where_no_device_alone_is_enough():
    held = [holding(f"w-{i}", vram={i: 10 * GIB}, is_idle=True) for i in (0, 1)]
    verdict = decide(for_gpu(on_devices(36 * GIB)), MACHINE, held, LIMITS)
    assert [advice.stop for advice in verdict.advice if advice.stop] == [("w-0", "w-1")]
    assert "It would fit once the idle workers w-0 and w-1 are stopped." in verdict.message


@pytest.mark.parametrize(("layers", "whole", "per_token"), [(20, 100, MIB // 64), (80, 150, 0), (80, 30, MIB // 64)])
def test_a_refusal_beside_many_idle_workers_asks_for_few_sizes(layers, whole, per_token):
    """Each is a whole estimate, and everybody waits for it."""
    gpus = tuple(DeviceReading("cuda", i, "A100", 80 * GIB, 2 * GIB) for i in range(8))
    held = [
        holding(f"w-{i:02}", vram={i * 7 % 8: 2 * GIB}, vram_bytes={i * 7 % 8: 2 * GIB}, is_idle=True)
        for i in range(100)
    ]
    size, asked = on_devices(whole * GIB, layers=layers, overhead=GIB, per_token=per_token), []

    def counted(placement, ctx_size):
        asked.append(placement)
        return size(placement, ctx_size)

    demand = replace(for_gpu(counted, gpus), ctx_size=2**20)
    verdict = decide(demand, replace(MACHINE, devices=gpus), held, LIMITS)
    assert [advice for advice in verdict.advice if advice.stop]
    assert len(asked) < 100


def test_the_details_are_json_with_every_number():
    held = [holding(f"w-{i:02}", 100 * MIB, vram={1: 100 * MIB}) for i in range(25)]
    size = on_devices(30 * GIB)
    verdict = decide(for_gpu(size, GPUS[1:]), MACHINE, held, LIMITS)
    details = json.loads(json.dumps(verdict.details()))
    assert {name: details[name] for name in ("fits", "backend", "devices", "split", "source", "ctx_size")} == {
        "fits": False,
        "backend": "cuda",
        "devices": [1],
        "split": [1.0],
        "source": "estimate",
        "ctx_size": 4096,
    }
    assert details["message"] == verdict.message
    assert details["need"]["vram"][0]["device"] == 1
    assert details["need"]["vram"][0]["total_bytes"] == 30 * GIB
    assert details["need"]["ram"]["overhead_bytes"] == GIB
    vram = details["resources"][1]
    assert (vram["resource"], vram["device"], vram["short_bytes"]) == (
        "vram",
        1,
        30 * GIB + GIB + 2500 * MIB - 22 * GIB,
    )
    assert vram["holders"][0] == {
        "worker_id": "w-00",
        "model_ref": "synthetic:y",
        "claimed_bytes": 100 * MIB,
        "held_bytes": 0,
    }
    assert (len(vram["holders"]), vram["holders_left_out"]) == (20, 5)
    assert "2.44 GiB reserved for w-00, w-01, w-02 and 22 more" in vram["reason"]


def test_the_source_of_a_need_is_told():
    stated = for_cpu(lambda placement, ctx_size: Need(Parts(overhead_bytes=GIB), source=Source.STATED))
    assert decide(stated, MACHINE, [], LIMITS).details()["source"] == "stated"


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (2048, "2 KiB"),
        (MIB, "1 MiB"),
        (1536 * MIB, "1.50 GiB"),
        (2**41, "2.00 TiB"),
    ],
)
def test_sizes_read_as_people_say_them(size_bytes, text):
    assert size_text(size_bytes) == text


def test_an_advised_setting_is_spelled_as_settings_are():
    assert [setting_text(size) for size in (9 * GIB, 9421 * MIB, 0)] == ["9GiB", "9421MiB", "0GiB"]
