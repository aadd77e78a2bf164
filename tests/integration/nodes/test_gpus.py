"""GPUs read through NVIDIA's own binding, from a library that plays the driver."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hives import wait_for
from tests.stand_in_nvml import (
    DRIVER_NOT_LOADED,
    GIB,
    UNKNOWN_MEMORY,
    VERSION_MISMATCH,
    StandIn,
    stand_in,
    uuid_of,
)

READER = Path(__file__).with_name("gpu_reader.py")
ALWAYS_FRESH = {"max_age": 0.0, "retry_interval": 0.0}


class Reader:
    """A process that reads; ``said``: what it logged since the answer before."""

    def __init__(self, environ: dict[str, str], visible: str | None, pace: dict[str, float]) -> None:
        settings = {"environ": {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}, **ALWAYS_FRESH, **pace}
        self.process = subprocess.Popen(
            [sys.executable, READER, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environ},
        )
        self.said: list[dict[str, Any]] = []
        self.looks = 0
        self.ticks = 0
        self.is_failing = False

    def read(self, at_once: int = 1, how: str = "") -> list[dict[str, Any]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{at_once} {how}\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        self.said, self.looks, self.ticks = answer["said"], answer["looks"], answer["ticks"]
        self.is_failing = answer["is_failing"]
        return answer["devices"]

    def end(self) -> None:
        with self.process as process:
            process.kill()

    def indexes(self) -> list[int]:
        return [device["index"] for device in self.read()]

    def events(self) -> list[tuple[str, str]]:
        return [(said["event"], said["level"]) for said in self.said]


Start = Callable[..., Reader]


@pytest.fixture
def start() -> Iterator[Start]:
    readers: list[Reader] = []

    def start_reader(driver: StandIn | None, visible: str | None = None, **pace: float) -> Reader:
        readers.append(Reader({} if driver is None else driver.environ, visible, pace))
        return readers[-1]

    yield start_reader
    for reader in readers:
        reader.end()


@pytest.mark.parametrize("count", [1, 2, 8])
def test_every_gpu_is_read_with_its_memory_and_who_has_it(tmp_path: Path, start: Start, count: int) -> None:
    with stand_in(tmp_path, gpus=count) as driver:
        driver.set_foreign_use(0, GIB)
        driver.set_use(count - 1, os.getpid(), 5 * GIB)
        devices = start(driver).read()
    assert [device["index"] for device in devices] == list(range(count))
    assert [device["uuid"] for device in devices] == [uuid_of(index) for index in range(count)]
    last = devices[-1]
    assert (last["backend"], last["name"], last["total_bytes"]) == ("cuda", "NVIDIA Stand-in", 24 * GIB)
    assert last["free_bytes"] == (18 if count == 1 else 19) * GIB
    assert last["held"] == {str(os.getpid()): 5 * GIB}
    assert last["is_live"] is True


def test_what_others_take_while_we_run_is_seen(tmp_path: Path, start: Start) -> None:
    with stand_in(tmp_path) as driver:
        reader = start(driver)
        assert reader.read()[0]["free_bytes"] == 24 * GIB
        driver.set_foreign_use(0, 20 * GIB)
        assert reader.read()[0]["free_bytes"] == 4 * GIB


def test_a_gpu_that_falls_off_is_missing_and_the_others_stay(tmp_path: Path, start: Start) -> None:
    with stand_in(tmp_path, gpus=8) as driver:
        reader = start(driver)
        assert reader.indexes() == list(range(8))
        driver.lose(3)
        assert reader.indexes() == [0, 1, 2, 4, 5, 6, 7]
        assert [(said["event"], said["gpu"], said["reason"]) for said in reader.said] == [
            ("gpu_missing", 3, "GPU is lost")
        ]
        assert reader.indexes() == [0, 1, 2, 4, 5, 6, 7]
        assert reader.said == []
        driver.bring_back(3)
        reader.read()
        assert reader.indexes() == list(range(8))
        assert reader.said == []


def test_a_gpu_that_comes_back_is_said_to_be_back_once(tmp_path: Path, start: Start) -> None:
    with stand_in(tmp_path, gpus=2) as driver:
        reader = start(driver)
        driver.lose(1)
        assert reader.indexes() == [0]
        driver.bring_back(1)
        assert reader.indexes() == [0, 1]
        assert [(said["event"], said["gpu"]) for said in reader.said] == [("gpu_is_back", "1")]


def test_devices_keep_their_numbers_when_the_driver_counts_anew(tmp_path: Path, start: Start) -> None:
    """A worker's claim names a number: it must not come to mean the device after it."""
    with stand_in(tmp_path, gpus=3) as driver:
        reader = start(driver)
        reader.read()
        driver.lose(1)
        reader.read()
        driver.unlist(1)
        reader.read()
        left = reader.read()
    assert [(device["index"], device["uuid"]) for device in left] == [(0, uuid_of(0)), (2, uuid_of(2))]


def test_a_driver_that_hangs_is_a_machine_without_it_and_the_loop_goes_on(tmp_path: Path, start: Start) -> None:
    with stand_in(tmp_path) as driver:
        reader = start(driver, answer_timeout=0.3)
        assert reader.indexes() == [0]
        driver.hang()
        assert reader.read() == []
        assert reader.ticks > 5
        assert [said["reason"] for said in reader.said] == ["it does not answer"]
        assert reader.read(at_once=4) == []
        assert reader.said == []
        driver.hang(False)
        said: list[tuple[str, str]] = []

        def reads_again() -> bool:
            devices = reader.read()
            said.extend(reader.events())
            return devices != []

        wait_for(reads_again, "it answers again")
        assert said == [("gpu_driver_is_back", "info")]


def test_nobody_waits_again_for_a_driver_that_hangs(tmp_path: Path, start: Start) -> None:
    with stand_in(tmp_path) as driver:
        reader = start(driver, begin_timeout=3.0)
        driver.hang()
        assert reader.read() == []
        waited = reader.ticks
        assert reader.read() == []
        assert reader.ticks < waited / 2


def test_a_process_ends_although_its_driver_hangs(tmp_path: Path, start: Start) -> None:
    with stand_in(tmp_path) as driver:
        reader = start(driver, begin_timeout=0.2)
        driver.hang()
        assert reader.read() == []
        assert reader.process.stdin is not None
        reader.process.stdin.close()
        assert reader.process.wait(10) == 0


def test_one_reading_serves_all_who_ask_at_once_and_soon_after(tmp_path: Path, start: Start) -> None:
    with stand_in(tmp_path, gpus=8) as driver:
        reader = start(driver, max_age=60.0)
        reader.read(at_once=50)
        reader.read(at_once=50)
    assert reader.looks == 1


def test_a_machine_without_the_library_has_no_gpu_and_that_is_no_warning(tmp_path: Path, start: Start) -> None:
    with stand_in(tmp_path) as driver:
        driver.remove()
        reader = start(driver, retry_interval=60.0)
        assert reader.read() == []
        assert reader.events() == [("gpu_driver_missing", "info")]
        assert "libnvidia-ml.so.1" in reader.said[0]["reason"]
        assert reader.read(at_once=3) == []
        assert reader.looks == 1


def test_a_driver_that_is_installed_later_is_found_without_a_restart(tmp_path: Path, start: Start) -> None:
    with stand_in(tmp_path) as driver:
        driver.remove()
        reader = start(driver)
        assert reader.read() == []
        driver.install()
        assert reader.indexes() == [0]
        assert reader.events() == [("gpu_driver_is_back", "info")]


def test_gpus_are_found_once_there_are_descriptors_again(tmp_path: Path, start: Start) -> None:
    with stand_in(tmp_path) as driver:
        reader = start(driver, begin_timeout=5.0)
        assert reader.read(how="starved") == []
        assert "Too many open files" in reader.said[0]["reason"]
        assert reader.indexes() == [0]
        assert reader.events() == [("gpu_driver_is_back", "info")]


@pytest.mark.parametrize(
    ("code", "words"), [(DRIVER_NOT_LOADED, "Driver Not Loaded"), (VERSION_MISMATCH, "different versions")]
)
def test_a_driver_that_cannot_be_begun_is_said_once(tmp_path: Path, start: Start, code: int, words: str) -> None:
    with stand_in(tmp_path) as driver:
        driver.fail_init(code)
        reader = start(driver)
        assert reader.read() == []
        assert reader.events() == [("gpu_driver_missing", "warning")]
        assert words in reader.said[0]["reason"]
        assert reader.read() == []
        assert reader.said == []
        driver.fail_init(0)
        assert reader.indexes() == [0]


def test_an_old_driver_is_read_as_far_as_it_goes(tmp_path: Path, start: Start) -> None:
    with stand_in(tmp_path, gpus=2, era="OLD_DRIVER") as driver:
        driver.set_use(1, os.getpid(), GIB)
        devices = start(driver).read()
    assert [device["free_bytes"] for device in devices] == [24 * GIB, 23 * GIB]
    assert devices[1]["held"] == {str(os.getpid()): GIB}


def test_a_driver_that_the_binding_cannot_begin_is_too_old(tmp_path: Path, start: Start) -> None:
    with stand_in(tmp_path, era="ANCIENT_DRIVER") as driver:
        reader = start(driver)
        assert reader.read() == []
    assert "too old" in reader.said[0]["reason"]


def test_who_has_memory_is_unknown_where_the_driver_does_not_tell(tmp_path: Path, start: Start) -> None:
    with stand_in(tmp_path) as driver:
        driver.set_use(0, os.getpid(), UNKNOWN_MEMORY)
        assert start(driver).read()[0]["held"] is None


def test_pids_of_another_namespace_are_not_taken_for_ours(tmp_path: Path, start: Start) -> None:
    beyond = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    with stand_in(tmp_path) as driver:
        driver.set_use(0, os.getpid(), GIB)
        driver.set_use(0, beyond, GIB)
        assert start(driver).read()[0]["held"] is None


def test_a_list_that_explains_nothing_of_what_was_taken_is_no_list(tmp_path: Path, start: Start) -> None:
    with stand_in(tmp_path, gpus=2) as driver:
        driver.set_foreign_use(0, 5 * GIB)
        driver.set_foreign_use(1, GIB // 2)
        assert [device["held"] for device in start(driver).read()] == [None, {}]


def test_a_gpu_in_mig_mode_is_set_aside_and_said_so(tmp_path: Path, start: Start) -> None:
    with stand_in(tmp_path, gpus=2) as driver:
        driver.set_mig(0, 1)
        driver.set_mig(1, 0)
        reader = start(driver)
        assert reader.indexes() == [1]
    assert "MIG" in reader.said[0]["reason"]


def test_a_gpu_that_is_set_aside_gives_a_driver_no_more_time_to_answer(tmp_path: Path, start: Start) -> None:
    with stand_in(tmp_path, gpus=2) as driver:
        driver.set_mig(0, 1)
        reader = start(driver, answer_timeout=0.2, begin_timeout=6.0)
        assert reader.indexes() == [1]
        driver.hang()
        assert reader.read() == []
        assert reader.ticks < 300


@pytest.mark.parametrize(
    ("visible", "shown"), [("1", [1]), ("", []), ("2,0", [0, 2]), ("-1,0", []), (uuid_of(1)[:12], [1])]
)
def test_devices_that_were_hidden_from_us_are_not_ours_to_give(
    tmp_path: Path, start: Start, visible: str, shown: list[int]
) -> None:
    with stand_in(tmp_path, gpus=3) as driver:
        assert start(driver, visible).indexes() == shown


Fault = Callable[[StandIn], None]


@pytest.mark.parametrize(
    "fault",
    [
        lambda driver: driver.hang(),
        lambda driver: driver.lose(0),
        lambda driver: driver.unlist(0),
        lambda driver: driver.fail_init(DRIVER_NOT_LOADED),
    ],
    ids=["it hangs", "a device is lost", "a device is no longer listed", "it is not loaded"],
)
def test_a_driver_that_has_less_than_it_had_fails(tmp_path: Path, start: Start, fault: Fault) -> None:
    with stand_in(tmp_path) as driver:
        reader = start(driver, begin_timeout=5.0, answer_timeout=5.0)
        assert reader.indexes() == [0]
        assert not reader.is_failing
        # Only a driver that is begun anew tells of what is no longer listed.
        driver.lose(0)
        reader.read()
        driver.bring_back(0)
        fault(driver)
        assert reader.read() == []
        assert reader.is_failing


def test_a_driver_that_was_never_here_and_one_that_is_set_aside_do_not_fail(tmp_path: Path, start: Start) -> None:
    with stand_in(tmp_path) as driver:
        driver.remove()
        reader = start(driver)
        assert reader.read() == []
        assert not reader.is_failing
        driver.set_mig(0, 1)
        driver.install()
        assert reader.read() == []
        assert not reader.is_failing
