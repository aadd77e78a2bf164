"""Every family is there from the first scrape, and each counts what it says."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rbee.core.admission import Resource
from rbee.core.claims import Claim, Need, Parts, Placement
from rbee.core.exits import Exit, ExitReason
from rbee.core.launch import Telemetry
from rbee.core.liveness import seen
from rbee.core.resources import DeviceReading, DiskReading, MachineReading, MemoryReading
from rbee.core.usage import Usage
from rbee.core.worker import Worker, WorkerSpec, WorkerState
from rbee.hive.journal import Transition
from rbee.hive.registry import Record, Registry
from rbee.observability.metrics import SHOWN_STATES, Metrics, Sources

pytestmark = pytest.mark.anyio
S = WorkerState
USAGE = Usage(
    "r-1",
    "synthetic:x",
    "w-1",
    "/v1/chat/completions",
    200,
    True,
    0.5,
    1.0,
    3.0,
    0.0002,
    7,
    40,
    2,
    tokens_per_second=20.0,
)


@pytest.fixture
def scene():
    return Scene()


class Scene:
    def __init__(self):
        self.registry, self.metrics, self.busy = Registry(), Metrics("1.2.3"), {}
        disk = DiskReading("/models", 4, 3)
        self.machine = MachineReading(0.0, MemoryReading(2, 1), disk, disk)
        self.metrics.watch(
            Sources(
                registry=self.registry,
                in_flight_of=lambda worker_id: self.busy.get(worker_id, 0),
                queue_depth=lambda: {"synthetic:x": 3},
                in_flight=lambda: {"synthetic:x": 2},
                illegal_events=lambda: 1,
                machine=lambda: self.machine,
                circuit_activations=lambda: 5,
                open_circuits=lambda: {"synthetic:x": 1},
                spawn_refusals=lambda: {Resource.VRAM: 7},
            )
        )

    def add(self, worker_id, state=S.READY, **changes):
        worker = Worker(WorkerSpec(worker_id, "synthetic:x"), state=state, restart_count=2)
        record = Record(worker, seen(0.0, 60.0), datetime.now(UTC), **changes)
        self.registry.add(record)
        return record

    def samples(self):
        body, content_type = self.metrics.page("text/plain")
        assert content_type.startswith("text/plain; version=")
        found = {}
        for family in text_string_to_metric_families(body.decode()):
            for sample in family.samples:
                found[sample.name, *sorted(sample.labels.items())] = sample.value
        return found

    def happened(self, before, after, event="Exited", **changes):
        self.metrics.transition(
            Transition(1, datetime.now(UTC), "w-1", "synthetic:x", 1, event, before, after, "", 1.5, **changes)
        )


FAMILIES = {
    "rbee_hive_shutdown_duration_seconds",
    "rbee_hive_circuit_open",
    "rbee_hive_circuit_breaker_activations",
    "rbee_hive_worker_restart_failures",
    "rbee_hive_worker_spawn_resource_failures",
    "rbee_hive_vram_total_bytes",
    "rbee_hive_vram_free_bytes",
    "rbee_hive_build_info",
    "rbee_hive_workers_total",
    "rbee_hive_workers_failed_health_checks",
    "rbee_hive_workers_restart_count",
    "rbee_hive_workers_stale",
    "rbee_hive_worker_exits",
    "rbee_hive_memory_available_bytes",
    "rbee_hive_memory_total_bytes",
    "rbee_hive_disk_available_bytes",
    "rbee_hive_disk_total_bytes",
    "rbee_hive_worker_memory_bytes",
    "rbee_hive_worker_vram_bytes",
    "rbee_hive_worker_heartbeat_age_seconds",
    "rbee_hive_worker_slots_busy",
    "rbee_hive_model_load_seconds",
    "rbee_hive_inference_requests",
    "rbee_hive_inference_duration_seconds",
    "rbee_hive_inference_time_to_first_token_seconds",
    "rbee_hive_inference_tokens_per_second",
    "rbee_hive_inference_queue_seconds",
    "rbee_hive_inference_tokens",
    "rbee_hive_illegal_events",
    "rbee_hive_gateway_overhead_seconds",
    "rbee_hive_queue_depth",
    "rbee_hive_requests_in_flight",
    "rbee_hive_workers_graceful_shutdown",
    "rbee_hive_workers_force_killed",
}


async def test_every_family_is_there_before_anything_has_happened(scene):
    body, _ = scene.metrics.page("")
    created = {name for name in _families(body) if name.endswith("_created")}
    assert _families(body) - created == FAMILIES


def _families(body):
    return {family.name for family in text_string_to_metric_families(body.decode())}


async def test_the_states_are_counted_with_their_zeroes(scene):
    scene.add("w-1")
    scene.add("w-2")
    scene.add("w-3", S.FAILED)
    scene.busy["w-2"] = 1
    samples = scene.samples()
    counted = {
        state: samples["rbee_hive_workers_total", ("backend", "cpu"), ("device", "0"), ("state", state)]
        for state in SHOWN_STATES
    }
    assert counted == {**dict.fromkeys(SHOWN_STATES, 0), "idle": 1, "busy": 1, "failed": 1}
    assert samples["rbee_hive_workers_restart_count",] == 6


async def test_the_series_of_a_worker_go_with_it(scene):
    scene.add("w-1", telemetry=Telemetry(rss_bytes=5), healthy=False)
    labels = (("model", "synthetic:x"), ("worker_id", "w-1"))
    samples = scene.samples()
    assert samples["rbee_hive_worker_memory_bytes", *labels] == 5
    assert samples["rbee_hive_workers_failed_health_checks",] == 1
    assert ("rbee_hive_worker_vram_bytes", *labels) not in samples
    scene.registry.remove("w-1")
    assert not any(("worker_id", "w-1") in key for key in scene.samples())


async def test_what_the_gateway_and_the_machine_say_is_shown(scene):
    samples = scene.samples()
    assert samples["rbee_hive_queue_depth", ("model", "synthetic:x")] == 3
    assert samples["rbee_hive_requests_in_flight", ("model", "synthetic:x")] == 2
    assert samples["rbee_hive_illegal_events_total",] == 1
    assert samples["rbee_hive_memory_available_bytes",] == 1
    assert samples["rbee_hive_disk_total_bytes",] == 4


@pytest.mark.parametrize(
    ("exit_", "graceful", "killed"),
    [
        (Exit(ExitReason.STOPPED, code=0), 1, 0),
        (Exit(ExitReason.STOPPED, signal_number=9), 0, 1),
        (Exit(ExitReason.STALE, signal_number=9), 0, 1),
        (Exit(ExitReason.CRASHED, signal_number=9), 0, 0),
        (Exit(ExitReason.CRASHED, code=1), 0, 0),
    ],
)
async def test_an_end_is_counted_by_its_reason_and_by_how_it_came(scene, exit_, graceful, killed):
    scene.happened(S.STOPPING, S.GONE, exit=exit_)
    samples = scene.samples()
    assert samples["rbee_hive_worker_exits_total", ("reason", str(exit_.reason))] == 1
    assert sum(value for key, value in samples.items() if key[0] == "rbee_hive_worker_exits_total") == 1
    assert samples["rbee_hive_workers_graceful_shutdown_total",] == graceful
    assert samples["rbee_hive_workers_force_killed_total",] == killed


async def test_a_load_is_timed_from_loading_to_ready(scene):
    scene.happened(S.LOADING, S.LOADING, "AnnouncedLoading")
    scene.happened(S.LOADING, S.READY, "AnnouncedReady")
    samples = scene.samples()
    assert samples["rbee_hive_model_load_seconds_count", ("model", "synthetic:x")] == 1
    assert samples["rbee_hive_model_load_seconds_sum", ("model", "synthetic:x")] == 1.5


async def test_a_stale_worker_is_counted_once(scene):
    scene.happened(S.READY, S.STOPPING, "WentStale")
    scene.happened(S.STOPPING, S.FAILED, exit=Exit(ExitReason.STALE, signal_number=9))
    assert scene.samples()["rbee_hive_workers_stale_total",] == 1


async def test_a_request_is_counted_with_its_tokens_and_times(scene):
    scene.metrics.used(USAGE)
    samples = scene.samples()
    model = ("model", "synthetic:x")
    request = ("endpoint", "/v1/chat/completions"), model, ("status", "200")
    assert samples["rbee_hive_inference_requests_total", *request] == 1
    kinds = {
        kind: samples["rbee_hive_inference_tokens_total", ("kind", kind), model] for kind in ("prompt", "generated")
    }
    assert kinds == {"prompt": 7, "generated": 40}
    assert samples["rbee_hive_inference_time_to_first_token_seconds_sum", model] == 1.0
    assert samples["rbee_hive_inference_tokens_per_second_sum", model] == 20
    assert samples["rbee_hive_inference_queue_seconds_sum", model] == 0.5
    assert samples["rbee_hive_gateway_overhead_seconds_sum",] == 0.0002


async def test_requests_are_counted_exactly_whatever_their_model_endpoint_and_status(scene):
    kinds = [(m, e, s) for m in ("synthetic:x", "other") for e in ("/v1/messages", "/v1/rerank") for s in (200, 429)]
    for number, (model, endpoint, status) in enumerate(kinds, 1):
        for _ in range(number):
            scene.metrics.used(USAGE._replace(model=model, endpoint=endpoint, status=status))
    samples = scene.samples()
    for number, (model, endpoint, status) in enumerate(kinds, 1):
        labels = ("endpoint", endpoint), ("model", model), ("status", str(status))
        assert samples["rbee_hive_inference_requests_total", *labels] == number
    assert samples["rbee_hive_inference_duration_seconds_count", ("model", "synthetic:x")] == 10
    assert samples["rbee_hive_inference_tokens_total", ("kind", "cached"), ("model", "other")] == 2 * 26


async def test_what_is_not_known_of_a_request_is_not_counted(scene):
    unknown = dict.fromkeys(
        ("first_byte_seconds", "overhead_seconds", "prompt_tokens", "generated_tokens", "cached_tokens")
    )
    scene.metrics.used(USAGE._replace(**unknown, tokens_per_second=None))
    samples = scene.samples()
    assert not [name for name in samples if name[0] == "rbee_hive_inference_tokens_total"]
    for name in ("tokens_per_second", "time_to_first_token_seconds"):
        assert samples[f"rbee_hive_inference_{name}_count", ("model", "synthetic:x")] == 0
    assert samples["rbee_hive_gateway_overhead_seconds_count",] == 0


async def test_prompt_that_was_only_counted_is_no_work_of_the_model(scene):
    scene.metrics.used(USAGE._replace(endpoint="/v1/messages/count_tokens", generated_tokens=None))
    assert not [name for name in scene.samples() if name[0] == "rbee_hive_inference_tokens_total"]


async def test_openmetrics_is_given_where_it_is_asked_for(scene):
    body, content_type = scene.metrics.page("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


async def test_each_device_has_its_memory_and_each_worker_what_it_has_of_it(scene):
    devices = (DeviceReading("cuda", 0, "A", 100, 40), DeviceReading("cuda", 1, "B", 200, 50))
    scene.machine = replace(scene.machine, devices=devices)
    scene.add("w-1", claim=Claim(Placement("cuda", (0, 1), (0.5, 0.5)), Need(Parts())), vram={0: 20, 1: 30})
    found = scene.samples()
    assert found["rbee_hive_vram_total_bytes", ("device", "cuda:1")] == 200
    assert found["rbee_hive_vram_free_bytes", ("device", "cuda:0")] == 40
    assert found["rbee_hive_worker_vram_bytes", ("model", "synthetic:x"), ("worker_id", "w-1")] == 50
    place = (("backend", "cuda"), ("device", "0,1"), ("state", "idle"))
    assert found["rbee_hive_workers_total", *place] == 1


async def test_refused_spawns_are_counted_by_what_was_lacking(scene):
    found = scene.samples()
    assert found["rbee_hive_worker_spawn_resource_failures_total", ("resource", "vram")] == 7
    assert found["rbee_hive_worker_spawn_resource_failures_total", ("resource", "ram")] == 0


async def test_memory_is_that_of_the_group_where_it_leaves_less(scene):
    scene.machine = replace(scene.machine, memory=MemoryReading(100, 80, group_limit_bytes=50, group_left_bytes=20))
    found = scene.samples()
    assert (found["rbee_hive_memory_total_bytes",], found["rbee_hive_memory_available_bytes",]) == (50, 20)
