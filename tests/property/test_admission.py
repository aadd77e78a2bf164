"""Any story of demands, grants, loads, crashes and ends on any machine: what is granted is there, what is refused is
not, and what is advised is true.

The machine beside it keeps books of its own: what foreign programs and workers really hold. It tells admission what a
kernel and a driver would: mapped weights count as available, and some drivers do not tell who holds what.
"""

import random
from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rbee.core.admission import Demand, Limits, Resource, decide, floor
from rbee.core.claims import Holding, Need, Parts, Placement
from rbee.core.resources import DeviceReading, DiskReading, MachineReading, MemoryReading

MIB = 2**20
LAYERS = 16
RAM_MARGIN, VRAM_MARGIN, DISK_MARGIN, LOG = 512, 256, 1024, 10
LIMITS = Limits(4096 * MIB, RAM_MARGIN * MIB, VRAM_MARGIN * MIB, DISK_MARGIN * MIB, LOG * MIB)
SIZES = st.integers(1, 3000)
WHICH = st.integers(0, 9)
DRIVERS = st.sampled_from(["tells", "silent", "once"])
"""Who holds what on a device: told, not told, or all that is known is from before the first worker."""


@dataclass(frozen=True)
class Model:
    """MiB. ``mapped``: weights that stay in the file's pages; on devices ``layer`` for each of LAYERS, an overhead, and
    little host memory."""

    anonymous: int
    mapped: int
    per_256_tokens: int
    layer: int
    overhead: int = 64

    def size(self, placement, ctx_size):
        kv = self.per_256_tokens * ctx_size // 256
        if placement.backend == "cpu":
            return Need(Parts(weights_bytes=self.mapped * MIB, kv_cache_bytes=(self.anonymous + kv) * MIB))
        done, vram, before = 0.0, [], 0
        for share in placement.split:
            done += share
            layers, before = round(done * LAYERS) - before, round(done * LAYERS)
            vram.append(
                Parts(layers * self.layer * MIB, layers * kv * MIB // LAYERS, overhead_bytes=self.overhead * MIB)
            )
        return Need(Parts(overhead_bytes=self.anonymous * MIB // 8), tuple(vram))


@dataclass
class Running:
    """A worker, and what it really holds. ``is_loaded``: it takes no more."""

    worker_id: str
    demand: Demand
    claim: object
    ram: int = 0
    vram: dict = field(default_factory=dict)
    is_loaded: bool = False
    is_idle: bool = True


class Admission(RuleBasedStateMachine):
    @initialize(
        ram=st.integers(2_000, 40_000),
        devices=st.lists(st.integers(2_000, 20_000), max_size=8),
        driver=DRIVERS,
        disks=st.tuples(st.integers(60, 300), st.integers(1_000, 20_000)),
        foreign=st.integers(0, 4000),
    )
    def build(self, ram, devices, driver, disks, foreign):
        self.ram, self.devices, self.driver, self.disks = ram * MIB, [size * MIB for size in devices], driver, disks
        self.foreign_ram = min(foreign * MIB, self.ram)
        self.foreign_vram = [min(foreign * MIB // 2, size) for size in self.devices]
        self.workers: list[Running] = []
        self.count = 0

    # What the world is, and what it tells.

    def free_vram(self, number):
        taken = sum(worker.vram.get(number, 0) for worker in self.workers if self.driver != "once")
        return max(0, self.devices[number] - self.foreign_vram[number] - taken)

    def machine(self, without=()):
        workers = [worker for worker in self.workers if worker.worker_id not in without]
        kept, self.workers = self.workers, workers
        available = max(0, self.ram - self.foreign_ram - sum(worker.ram for worker in workers))
        readings = tuple(
            DeviceReading(
                "cuda", number, "GPU", total, self.free_vram(number), f"u{number}", None, self.driver != "once"
            )
            for number, total in enumerate(self.devices)
        )
        self.workers = kept
        state, models = (size * MIB for size in self.disks)
        return MachineReading(
            0.0,
            MemoryReading(self.ram, available),
            DiskReading("/models", 2**40, models),
            DiskReading("/state", 2**40, state),
            readings,
        )

    def holdings(self, without=()):
        return [
            Holding(
                worker.worker_id,
                worker.demand.model_ref,
                worker.claim,
                worker.ram,
                dict(worker.vram) if self.driver == "tells" else None,
                worker.is_loaded,
                worker.is_idle,
            )
            for worker in self.workers
            if worker.worker_id not in without
        ]

    # The rule, said once more without any of admission's own code.

    def promised(self, worker, number):
        placement = worker.claim.placement
        claimed = dict(zip(placement.devices, worker.claim.need.vram, strict=True))
        return max(claimed[number].total_bytes if number in claimed else 0, worker.vram.get(number, 0))

    def left_ram(self, own=None):
        others = [worker for worker in self.workers if worker.worker_id != own]
        promised = sum(max(worker.claim.need.ram.total_bytes, worker.ram) for worker in others)
        return self.ram - self.foreign_ram - promised - LIMITS.min_free_memory

    def left_vram(self, number, own=None):
        others = [worker for worker in self.workers if worker.worker_id != own]
        return (
            self.devices[number]
            - self.foreign_vram[number]
            - sum(self.promised(worker, number) for worker in others)
            - LIMITS.min_free_vram
        )

    def known_left_vram(self, number, own=None):
        """As above, less what a silent driver does not tell of a load that goes on: that counts twice."""
        loading = [worker for worker in self.workers if not worker.is_loaded and worker.worker_id != own]
        twice = sum(worker.vram.get(number, 0) for worker in loading) if self.driver == "silent" else 0
        return self.left_vram(number, own) - twice

    def must_fit(self, demand):
        """Whether it fits by the rule."""
        ram = demand.size(Placement(), demand.ctx_size).ram.total_bytes
        if demand.devices:
            ram = demand.size(Placement("cuda", (0,), (1.0,)), demand.ctx_size).ram.total_bytes
        limit = min(LIMITS.max_worker_memory, demand.limit_bytes or 2**62)
        state, models = (size * MIB for size in self.disks)
        if ram > limit or ram > self.left_ram(demand.worker_id) or state < LIMITS.log_bytes + 64 * MIB:
            return False
        if demand.download_bytes and models - demand.download_bytes < LIMITS.min_free_disk:
            return False
        if not demand.devices:
            return True
        rooms = sorted(
            (self.known_left_vram(device.index, demand.worker_id) for device in demand.devices), reverse=True
        )
        return any(self.layers_fit(demand, rooms[:count]) for count in range(1, len(rooms) + 1))

    @staticmethod
    def layers_fit(demand, rooms):
        """Whether devices with these *rooms* hold all layers between them, each as many whole ones as it can."""

        def needed(layers):
            share = (layers / LAYERS, 1 - layers / LAYERS)
            return demand.size(Placement("cuda", (0, 1), share), demand.ctx_size).vram[0].total_bytes

        held = [max((n for n in range(LAYERS + 1) if needed(n) <= room), default=None) for room in rooms]
        return None not in held and sum(held) >= LAYERS

    # What happens.

    def worker(self, which):
        return self.workers[which % len(self.workers)] if self.workers else None

    @rule(
        model=st.builds(Model, SIZES, SIZES, st.integers(0, 100), st.integers(1, 1500)),
        ctx_size=st.integers(1, 20_000),
        on_gpu=st.booleans(),
        device=st.none() | st.integers(0, 7),
        limit=st.sampled_from([None, None, 500, 3000]),
        download=st.sampled_from([0, 0, 3000]),
    )
    def spawn(self, model, ctx_size, on_gpu, device, limit, download):
        readings = self.machine().devices if on_gpu else ()
        asked = readings if device is None or not readings else (readings[device % len(readings)],)
        backend = "cuda" if asked else "cpu"
        others = tuple(one for one in readings if one not in asked) if asked else ()
        demand = Demand(
            "m",
            backend,
            asked,
            ctx_size,
            model.size,
            limit_bytes=limit and limit * MIB,
            download_bytes=download * MIB,
            others=others,
        )
        verdict = self.judge(demand)
        if verdict.fits:
            self.count += 1
            self.workers.append(Running(f"w-{self.count}", demand, verdict.claim))

    @rule(device=st.none() | st.integers(0, 7), over=st.integers(-1, 1), beside=st.booleans())
    def spawn_at_the_edge(self, device, over, beside):
        """All that is left, to the byte; *beside* others, where there are any on a device."""
        readings = self.machine().devices
        taken = [number for worker in self.workers for number in worker.claim.placement.devices]
        if beside and taken:
            device = taken[(device or 0) % len(taken)]
        asked = () if device is None or not readings else (readings[device % len(readings)],)
        device = asked[0].index if asked else None
        ram = 0 if asked else max(0, min(self.left_ram(), LIMITS.max_worker_memory) + over)
        vram = max(0, self.known_left_vram(device) + over) if asked else 0

        def size(placement, ctx_size):
            return Need(Parts(kv_cache_bytes=ram), tuple(Parts(overhead_bytes=vram) for _ in placement.devices))

        demand = Demand("edge", "cuda" if asked else "cpu", asked, 4096, size)
        verdict = self.judge(demand)
        if verdict.fits:
            self.count += 1
            self.workers.append(Running(f"w-{self.count}", demand, verdict.claim))

    @rule(which=WHICH)
    def start_again(self, which):
        """After a crash: its memory is gone, its claim is not; it is admitted anew, and stays as it is if refused."""
        if (worker := self.worker(which)) is None:
            return
        worker.ram, worker.vram, worker.is_loaded = 0, {}, False
        fresh = {device.index: device for device in self.machine().devices}
        devices = tuple(fresh[device.index] for device in worker.demand.devices)
        verdict = self.judge(replace(worker.demand, worker_id=worker.worker_id, devices=devices, download_bytes=0))
        if verdict.fits:
            worker.claim = verdict.claim

    @rule(which=WHICH, part=st.sampled_from([0.3, 0.9, 1.0, 1.0]))
    def load(self, which, part):
        """It takes what it claimed, little by little; its mapped weights are available memory to the kernel."""
        worker = self.worker(which)
        if worker is None or worker.is_loaded:
            return
        need = worker.claim.need
        worker.ram = max(worker.ram, int(part * (need.ram.total_bytes - need.ram.weights_bytes)))
        for number, parts in zip(worker.claim.placement.devices, need.vram, strict=True):
            worker.vram[number] = max(worker.vram.get(number, 0), int(part * parts.total_bytes))
        worker.is_loaded = part == 1.0

    @rule(which=WHICH, more=st.integers(0, 300))
    def take_more_than_claimed(self, which, more):
        worker = self.worker(which)
        if worker is not None and worker.is_loaded and self.left_ram() >= more * MIB:
            worker.ram = worker.claim.need.ram.total_bytes + more * MIB

    @rule(which=WHICH, is_idle=st.booleans())
    def work_or_rest(self, which, is_idle):
        if worker := self.worker(which):
            worker.is_idle = is_idle

    @rule(which=WHICH)
    def end(self, which):
        if worker := self.worker(which):
            self.workers.remove(worker)

    @rule(data=st.data(), share=st.floats(0, 1))
    def foreign_programs_change(self, data, share):
        """They never take what was promised: nobody could keep a promise then."""
        self.foreign_ram = max(0, int(share * (self.foreign_ram + self.left_ram())))
        if self.driver != "once" and self.devices:
            number = data.draw(st.integers(0, len(self.devices) - 1))
            self.foreign_vram[number] = max(0, int(share * (self.foreign_vram[number] + self.left_vram(number))))

    # What must hold.

    def judge(self, demand):
        machine, holdings = self.machine(), self.holdings()
        verdict = decide(demand, machine, holdings, LIMITS)
        shuffled = random.Random(1).sample(holdings, len(holdings))
        assert decide(demand, machine, shuffled, LIMITS) == verdict, "the order of the workers decides nothing"
        assert verdict.fits == self.must_fit(demand)
        assert verdict.fits == all(check.fits for check in verdict.checks) == (not verdict.lacking)
        assert verdict.claim.placement.backend == demand.backend
        for check in verdict.checks:
            assert check.fits == (check.short_bytes == 0)
            assert (
                min(check.need_bytes, check.free_bytes, check.reserved_bytes, check.left_bytes, check.margin_bytes) >= 0
            )
        if verdict.fits:
            assert verdict.advice == ()
        for advice in verdict.advice:
            self.follow(demand, advice)
        return verdict

    def follow(self, demand, advice):
        """Do what is advised, in a world of its own, and ask again."""
        limits, without = LIMITS, ()
        if advice.ctx_size is not None:
            changed = replace(demand, ctx_size=advice.ctx_size)
            assert 512 <= advice.ctx_size < demand.ctx_size
        elif advice.device is not None:
            changed = replace(demand, devices=(next(one for one in demand.others if one.index == advice.device),))
        elif advice.stop:
            changed, without = demand, advice.stop
            assert all(worker.is_idle for worker in self.workers if worker.worker_id in without)
        elif advice.setting == "max_memory_bytes":
            changed = replace(demand, limit_bytes=advice.setting_bytes)
        else:
            changed = demand
            limits = replace(limits, **{advice.setting.removeprefix("limits."): advice.setting_bytes})
        assert self.ask(changed, limits, without).fits, advice.text
        for worker_id in without:
            fewer = [name for name in without if name != worker_id]
            verdict = self.ask(demand, limits, fewer)
            # A division that only just fits may be missed: looking for each would take too long.
            assert not verdict.fits or verdict.claim.placement.devices[1:], f"{worker_id} could have stayed"
        if advice.ctx_size is not None and advice.ctx_size + 256 < demand.ctx_size:
            assert demand.devices[1:] or not self.ask(replace(demand, ctx_size=advice.ctx_size + 256), limits).fits

    def ask(self, demand, limits, without=()):
        machine = self.machine(without)
        fresh = {device.index: device for device in machine.devices}
        devices = tuple(fresh[device.index] for device in demand.devices)
        return decide(replace(demand, devices=devices), machine, self.holdings(without), limits)

    @invariant()
    def nothing_is_promised_twice(self):
        assert not self.workers or self.left_ram() >= 0
        for number in range(len(self.devices)):
            users = [worker for worker in self.workers if number in worker.claim.placement.devices]
            assert not users or self.left_vram(number) >= 0

    @invariant()
    def the_floor_is_what_must_stay_free(self):
        check = floor(self.machine(), self.holdings(), LIMITS)
        assert check.resource is Resource.RAM
        assert check.fits == (self.left_ram() >= 0)


Admission.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestAdmission = Admission.TestCase
