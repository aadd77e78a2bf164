"""A hive on a machine with GPUs: the real binding on a driver that the test plays."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hives import Hive, is_alive, wait_for
from tests.stand_in_nvml import GIB, StandIn, stand_in

Start = Callable[..., Hive]


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[StandIn]:
    with stand_in(tmp_path, gpus=2) as played:
        yield played


@pytest.fixture
def hive(start_hive: Start, driver: StandIn) -> Hive:
    return start_hive({"monitor.memory_interval": "0.5s"}, environ=driver.environ)


def on_gpu(gib: float) -> dict[str, Any]:
    return {"backend": "cuda", "engine_args": ["--vram-bytes", str(int(gib * GIB))]}


def devices(hive: Hive) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = hive.get("/v1/resources").json["devices"]
    return found


def environment_of(pid: int) -> dict[str, str]:
    data = Path(f"/proc/{pid}/environ").read_bytes().decode()
    return dict(item.split("=", 1) for item in data.split("\0") if item)


def test_workers_go_where_most_is_left_and_see_no_other_device(hive: Hive, driver: StandIn):
    driver.set_foreign_use(0, 10 * GIB)
    wait_for(lambda: devices(hive)[0]["free_bytes"] < devices(hive)[1]["free_bytes"], "foreign use is seen")
    worker = hive.ready(**on_gpu(4))
    assert (worker["backend"], worker["devices"]) == ("cuda", [1])
    assert environment_of(worker["engine_pid"])["CUDA_VISIBLE_DEVICES"] == driver.gpus[1].uuid


def test_a_worker_for_the_processor_sees_no_device(hive: Hive):
    worker = hive.ready(backend="cpu")
    assert worker["devices"] == []
    assert environment_of(worker["engine_pid"])["CUDA_VISIBLE_DEVICES"] == ""


def test_what_does_not_fit_gets_507_with_the_numbers_of_each_device(hive: Hive, driver: StandIn):
    total = driver.gpus[0].total_bytes
    refused = hive.post("/v1/workers/spawn", {"model_ref": "synthetic:x", **on_gpu(3 * total / GIB)})
    assert refused.status == 507
    checks = [c for c in refused.json["error"]["details"]["resources"] if c["resource"] == "vram"]
    assert {check["device"] for check in checks} == {0, 1}
    assert all(check["margin_bytes"] == GIB for check in checks)
    assert hive.metric("rbee_hive_worker_spawn_resource_failures_total", resource="vram") == 1


def test_a_model_that_is_too_large_for_one_device_is_divided(hive: Hive, driver: StandIn):
    total = driver.gpus[0].total_bytes
    worker = hive.ready(**on_gpu(1.5 * total / GIB))
    assert worker["devices"] == [0, 1]
    assert environment_of(worker["engine_pid"])["CUDA_VISIBLE_DEVICES"] == ",".join(gpu.uuid for gpu in driver.gpus)


def test_the_memory_of_a_worker_is_shown_by_what_its_processes_have(hive: Hive, driver: StandIn):
    worker = hive.ready(**on_gpu(4))
    (device,) = worker["devices"]
    driver.set_use(device, worker["engine_pid"], 3 * GIB)
    worker_id = worker["worker_id"]
    wait_for(lambda: hive.worker(worker_id)["memory"]["vram_bytes"] == 3 * GIB, "it is measured")
    assert hive.metric("rbee_hive_worker_vram_bytes", worker_id=worker_id) == 3 * GIB
    # What it has not taken of its claim yet is kept for it.
    wait_for(lambda: devices(hive)[device]["reserved_bytes"] == GIB, "the rest is reserved")
    driver.set_use(device, worker["engine_pid"], 0)


def test_a_claim_is_given_up_only_when_the_driver_shows_its_memory_free(hive: Hive, driver: StandIn):
    worker = hive.ready(**on_gpu(4))
    worker_id, pid = worker["worker_id"], worker["engine_pid"]
    (device,) = worker["devices"]
    driver.set_use(device, pid, 4 * GIB)
    wait_for(lambda: hive.worker(worker_id)["memory"]["vram_bytes"] == 4 * GIB, "it is measured")
    hive.call("DELETE", f"/v1/workers/{worker_id}?force=true")
    hive.wait_state(worker_id, "gone")
    # Its process is gone, and the driver names it still.
    assert devices(hive)[device]["reserved_bytes"] == 4 * GIB
    assert not is_alive(pid)
    driver.set_use(device, pid, 0)
    wait_for(lambda: devices(hive)[device]["reserved_bytes"] == 0, "it is given up")


def test_a_device_that_falls_off_is_gone_and_said_once(hive: Hive, driver: StandIn):
    wait_for(lambda: len(devices(hive)) == 2, "both are there")
    driver.lose(1)
    wait_for(lambda: len(devices(hive)) == 1, "one is left")
    refused = hive.post("/v1/workers/spawn", {"model_ref": "synthetic:x", **on_gpu(1), "device": 1})
    assert (refused.status, refused.code) == (422, "invalid_field")
    assert hive.ready(**on_gpu(1))["devices"] == [0]
    driver.bring_back(1)
    wait_for(lambda: len(devices(hive)) == 2, "it is back", 90)


def test_a_hive_is_ready_before_a_driver_that_hangs_is_given_up(start_hive: Start, driver: StandIn):
    driver.hang()
    hive = start_hive(environ=driver.environ)
    wait_for(lambda: hive.log("gpu_driver_missing"), "the driver is given up")
    events = [said["event"] for said in hive.log()]
    assert events.index("hive_ready") < events.index("gpu_driver_missing")


def test_a_worker_waits_for_the_device_that_it_asked_for(start_hive: Start, driver: StandIn):
    hive = start_hive({"restart.base_delay": "0.1s"}, environ=driver.environ)
    worker_id = hive.ready(**on_gpu(1), device=1)["worker_id"]
    driver.lose(1)
    wait_for(lambda: len(devices(hive)) == 1, "it has fallen off")
    assert hive.post(f"/v1/workers/{worker_id}/restart", None).status == 202
    waiting = hive.wait_state(worker_id, "backoff")
    assert "device 1" in waiting["message"]


def test_a_real_model_does_not_run_on_the_processor_in_silence(hive: Hive):
    for backend in ("auto", "cuda"):
        refused = hive.post("/v1/workers/spawn", {"model_ref": "example", "backend": backend})
        assert (refused.status, refused.code) == (422, "invalid_field")
        message = refused.json["error"]["message"]
        assert "docs/install.md" in message
        assert "pip install" in message
    assert hive.post("/v1/workers/spawn", {"model_ref": "example", "backend": "cpu"}).status == 200


def test_metrics_show_each_device(hive: Hive, driver: StandIn):
    wait_for(lambda: hive.metric("rbee_hive_vram_total_bytes") == 2 * driver.gpus[0].total_bytes, "they are read", 30)
    assert hive.metric("rbee_hive_vram_free_bytes", device="cuda:0") == driver.gpus[0].total_bytes
