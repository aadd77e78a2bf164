"""Limits are enforced on real processes that really hold memory: before a spawn, beside others, and while one runs."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from rbee.nodes import memory
from tests.hives import Hive, example_model, running_hive, wait_for

MIB, GIB = 2**20, 2**30
Start = Callable[..., Hive]
UNIT = 1 * GIB
"""What one worker holds here: much more than other programs of this machine take or leave meanwhile."""


def with_room_for(units: float) -> dict[str, str]:
    """Settings under which so many units of memory may be taken.

    With beats as usual: whoever writes gigabytes on all cores may keep a keeper from speaking for a second.
    """
    margin = str(memory.read().free_bytes - int(units * UNIT))
    return {"limits.min_free_memory": margin, "heartbeat.interval": "2s", "heartbeat.stale_after": "60s"}


def holding(size: int = UNIT, *more: str) -> dict[str, Any]:
    return {"engine_args": ["--hold-bytes", str(size), *more]}


@contextmanager
def other_program(size: int) -> Iterator[None]:
    """A process that is not the hive's, and holds *size* bytes."""
    code = f"held = b'x' * {size}; print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield
        finally:
            process.kill()


def test_a_spawn_that_does_not_fit_gets_507_with_every_number_and_starts_nothing(start_hive: Start):
    hive = start_hive(with_room_for(0.5))
    refused = hive.post("/v1/workers/spawn", {"model_ref": "synthetic:big", **holding()})
    assert (refused.status, refused.code) == (507, "insufficient_resources")
    error = refused.json["error"]
    assert "limits.min_free_memory" in error["message"]
    (ram,) = [check for check in error["details"]["resources"] if check["resource"] == "ram"]
    assert ram["need_bytes"] >= UNIT
    assert ram["short_bytes"] == ram["need_bytes"] + ram["margin_bytes"] + ram["reserved_bytes"] - ram["free_bytes"]
    assert not ram["fits"]
    assert hive.get("/v1/workers").json == {"workers": []}
    assert hive.processes() == []
    assert hive.metric("rbee_hive_worker_spawn_resource_failures_total", resource="ram") == 1


def test_of_thirty_two_spawns_at_once_exactly_three_run(start_hive: Start):
    hive = start_hive(with_room_for(3.7))
    with ThreadPoolExecutor(32) as pool:
        body = {"model_ref": "synthetic:x", **holding()}
        statuses = sorted(pool.map(lambda _: hive.post("/v1/workers/spawn", body).status, range(32)))
    assert statuses == [200] * 3 + [507] * 29
    ids = [worker["worker_id"] for worker in hive.get("/v1/workers").json["workers"]]
    assert len(ids) == 3
    for worker_id in ids:
        assert hive.wait_state(worker_id, "idle")
    # Now that all of it is taken, nothing more fits, and nothing is counted twice.
    assert hive.post("/v1/workers/spawn", body).status == 507
    assert hive.post("/v1/workers/spawn", {"model_ref": "synthetic:small"}).status == 200


@pytest.mark.parametrize("kind", ["--hold-bytes", "--map-bytes"])
def test_memory_is_not_sold_twice_whether_it_is_written_or_mapped_from_a_file(start_hive: Start, kind: str):
    hive = start_hive(with_room_for(1.5))
    body = {"model_ref": "synthetic:x", "engine_args": [kind, str(UNIT)]}
    hive.ready("synthetic:x", engine_args=[kind, str(UNIT)])
    assert hive.post("/v1/workers/spawn", body).status == 507


def test_what_a_worker_has_left_behind_can_be_taken_at_once_when_it_is_gone(start_hive: Start):
    hive = start_hive(with_room_for(1.5))
    first = hive.ready(**holding())["worker_id"]
    assert hive.call("DELETE", f"/v1/workers/{first}").status == 202
    hive.wait_state(first, "gone")
    wait_for(lambda: hive.post("/v1/admission", {"model_ref": "synthetic:x", **holding()}).json["fits"], "it fits")
    hive.ready(**holding())


def test_a_worker_over_its_own_limit_is_ended_with_the_numbers(start_hive: Start):
    hive = start_hive({"restart.policy": "never", "monitor.memory_interval": "0.5s"})
    arguments = holding(64 * MIB, "--leak-bytes", str(512 * MIB))
    worker_id = hive.spawn(**arguments, max_memory_bytes=300 * MIB)
    ended = hive.wait_state(worker_id, "failed")
    assert ended["last_exit"]["reason"] == "over_memory"
    assert "more than the 300 MiB that its max_memory_bytes allows" in ended["message"]
    assert "it was admitted with" in ended["message"]
    assert hive.metric("rbee_hive_worker_exits_total", reason="over_memory") == 1


def test_the_smaller_of_both_limits_holds(start_hive: Start):
    hive = start_hive(
        {"restart.policy": "never", "monitor.memory_interval": "0.5s", "limits.max_worker_memory": "400MiB"}
    )
    worker_id = hive.spawn(**holding(64 * MIB, "--leak-bytes", str(512 * MIB)), max_memory_bytes=2 * GIB)
    ended = hive.wait_state(worker_id, "failed")
    assert "more than the 400 MiB that limits.max_worker_memory allows" in ended["message"]


def test_more_than_the_estimate_ends_nobody_and_is_what_the_next_one_is_admitted_with(start_hive: Start):
    hive = start_hive({"monitor.memory_interval": "0.5s"})
    arguments = holding(64 * MIB, "--leak-bytes", str(400 * MIB))
    first = hive.ready(**arguments)
    admitted = first["claim"]["ram_bytes"]

    def measured() -> dict[str, Any] | None:
        verdict = hive.post("/v1/admission", {"model_ref": "synthetic:x", **arguments}).json
        return verdict if verdict["need"]["ram"]["total_bytes"] >= 464 * MIB else None

    verdict = wait_for(measured, "the whole peak is measured")
    assert verdict["source"] == "measured"
    assert admitted < 464 * MIB
    assert hive.worker(first["worker_id"])["state"] == "idle"


def test_measured_peaks_outlive_the_hive(start_hive: Start):
    quick = {"monitor.memory_interval": "0.5s"}
    arguments = {"model_ref": "synthetic:x", **holding(64 * MIB, "--leak-bytes", str(400 * MIB))}
    hive = start_hive(quick)
    hive.ready(**arguments)
    wait_for(lambda: hive.post("/v1/admission", arguments).json["source"] == "measured", "a peak is measured")
    assert hive.stop() == 0
    assert start_hive(quick).post("/v1/admission", arguments).json["source"] == "measured"


def test_the_next_hive_holds_what_the_killed_one_had_granted(start_hive: Start):
    room = with_room_for(1.5)
    hive = start_hive(room)
    worker = hive.ready(**holding())
    hive.signal(signal.SIGKILL)
    assert hive.process is not None
    hive.process.wait()
    successor = start_hive(room)
    again = successor.wait_state(worker["worker_id"], "idle")
    assert (again["pid"], again["claim"]) == (worker["pid"], worker["claim"])
    assert successor.post("/v1/workers/spawn", {"model_ref": "synthetic:x", **holding()}).status == 507


def test_a_restart_that_does_not_fit_waits_with_the_verdict_until_it_does(start_hive: Start):
    hive = start_hive({**with_room_for(1.7), "restart.base_delay": "0.1s"})
    worker = hive.ready(**holding())
    os.kill(worker["pid"], signal.SIGSTOP)  # it may not come back before the memory is taken
    with other_program(UNIT):
        os.kill(worker["pid"], signal.SIGKILL)

        def refused() -> dict[str, Any] | None:
            seen = hive.worker(worker["worker_id"])
            return seen if seen["message"].startswith("Not restarted yet") else None

        seen = wait_for(refused, "its restart is refused")
        assert seen["state"] == "backoff"
        assert "limits.min_free_memory" in seen["message"]
        assert seen["claim"] is not None
    hive.wait_state(worker["worker_id"], "idle")


def test_resources_show_who_has_what(start_hive: Start):
    hive = start_hive()
    worker = hive.ready(**holding(256 * MIB))

    def measured() -> dict[str, Any] | None:
        (shown,) = hive.get("/v1/resources").json["workers"]
        return shown if (shown["measured"]["private_bytes"] or 0) >= 256 * MIB else None

    shown = wait_for(measured, "it is measured")
    assert shown["worker_id"] == worker["worker_id"]
    assert shown["claimed"]["ram_bytes"] == worker["claim"]["ram_bytes"] >= 256 * MIB
    assert shown["reserved"]["ram_bytes"] == shown["claimed"]["ram_bytes"] - shown["measured"]["private_bytes"]


def test_the_context_that_a_refusal_advises_is_accepted(start_hive: Start):
    example_model()
    hive = start_hive({"workers.prompt_cache": "0"})
    refused = hive.post("/v1/workers/spawn", {"model_ref": "example", "ctx_size": 4_000_000})
    assert refused.status == 507
    (advised,) = [a["ctx_size"] for a in refused.json["error"]["details"]["advice"] if a["ctx_size"]]
    assert 4096 < advised < 4_000_000
    verdict = hive.post("/v1/admission", {"model_ref": "example", "ctx_size": advised}).json
    assert verdict["fits"]
    assert not hive.post("/v1/admission", {"model_ref": "example", "ctx_size": advised + 4096}).json["fits"]


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"ctx_size": -1}, 422, "ctx_size"),
        ({"ctx_size": 0}, 422, "ctx_size"),
        ({"ctx_size": 2**62}, 422, "ctx_size"),
        ({"slots": 0}, 422, "slots"),
        ({"slots": 10**9}, 422, "slots"),
        ({"max_memory_bytes": 0}, 422, "max_memory_bytes"),
        ({"backend": "abacus"}, 422, "abacus"),
        ({"backend": "cuda"}, 422, "backend"),
        ({"device": 7}, 422, "device"),
        ({"device": -1}, 422, "device"),
        ({"ctx_size": 16 * 2**20, "slots": 1024}, 507, "does not fit"),
        ({"max_memory_bytes": 1}, 507, "max_memory_bytes"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/workers/spawn", "/v1/admission"])
def test_bad_input_is_refused_by_name(small_hive: Hive, path: str, fields: dict[str, Any], status: int, words: str):
    answer = small_hive.post(path, {"model_ref": "example", **fields})
    if path == "/v1/admission" and status == 507:
        assert answer.status == 200
        assert not answer.json["fits"]
        assert words in answer.json["message"]
    else:
        assert answer.status == status, answer.body
        assert words in answer.json["error"]["message"]
    assert small_hive.get("/v1/workers").json == {"workers": []}


@pytest.fixture(scope="module")
def small_hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hive]:
    example_model()
    with running_hive(tmp_path_factory.mktemp("limits") / "state") as hive:
        yield hive
