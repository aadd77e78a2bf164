"""Which backend and devices a worker may use: a row for every case."""

from dataclasses import replace
from typing import Any

import pytest

from rbee.core.backends import choose
from rbee.core.errors import InvalidField
from rbee.core.resources import DeviceReading, DiskReading, EngineBuild, MachineReading, MemoryReading

MEMORY = MemoryReading(64, 32)
DISK = DiskReading("/", 64, 32)


def device(backend: str, index: int = 0, name: str = "NVIDIA H100", is_live: bool = True) -> DeviceReading:
    return DeviceReading(backend, index, name, 80, 70, is_live=is_live)


def machine(*devices: DeviceReading) -> MachineReading:
    return MachineReading(0.0, MEMORY, DISK, DISK, devices)


def build(*backends: str, count: int = 1) -> EngineBuild:
    return EngineBuild(tuple(device(backend, n, f"{backend} GPU", False) for backend in backends for n in range(count)))


BARE, FOR_CPU = machine(), EngineBuild()
NVIDIA = machine(device("cuda", 0), device("cuda", 1))
SPARSE = machine(device("cuda", 0), device("cuda", 2, "NVIDIA L4"))
LOST = replace(BARE, failing=frozenset({"cuda"}))
FAILED = EngineBuild(problem="No module named 'xllamacpp'")


@pytest.mark.parametrize(
    ("asked", "number", "engine", "its_build", "here", "backend", "devices"),
    [
        # Nobody said what to use.
        ("auto", None, "llama-cpp", FOR_CPU, BARE, "cpu", []),
        ("auto", 0, "llama-cpp", FOR_CPU, BARE, "cpu", []),
        ("auto", None, "llama-cpp", FAILED, BARE, "cpu", []),
        ("auto", None, "llama-cpp", build("cuda"), NVIDIA, "cuda", [0, 1]),
        ("auto", 1, "llama-cpp", build("cuda"), NVIDIA, "cuda", [1]),
        ("auto", None, "llama-cpp", build("vulkan", "cuda"), NVIDIA, "cuda", [0, 1]),
        ("auto", None, "llama-cpp", build("vulkan", "rocm"), BARE, "rocm", [0]),
        ("auto", None, "llama-cpp", build("vulkan", "metal"), BARE, "metal", [0]),
        ("auto", None, "llama-cpp", build("vulkan", count=2), NVIDIA, "vulkan", [0, 1]),
        ("auto", None, "llama-cpp", build("sycl"), BARE, "cpu", []),
        ("auto", None, "vllm", None, NVIDIA, "cuda", [0, 1]),
        ("auto", None, "vllm", None, BARE, "cpu", []),
        ("cpu", None, "other", FAILED, BARE, "cpu", []),
        ("auto", None, "llama-cpp", build("vulkan", "cuda"), LOST, "vulkan", [0]),
        ("auto", None, "llama-cpp", FOR_CPU, LOST, "cpu", []),
        ("auto", None, "llama-cpp", build("cuda"), replace(SPARSE, failing=LOST.failing), "cuda", [0, 2]),
        ("auto", None, "synthetic", None, NVIDIA, "cpu", []),
        ("auto", 1, "synthetic", None, NVIDIA, "cuda", [1]),
        ("auto", 0, "synthetic", None, BARE, "cpu", []),
        # Somebody did.
        ("cpu", None, "llama-cpp", build("cuda"), NVIDIA, "cpu", []),
        ("cpu", 0, "llama-cpp", FAILED, NVIDIA, "cpu", []),
        ("cuda", None, "llama-cpp", build("cuda"), NVIDIA, "cuda", [0, 1]),
        ("cuda", 2, "llama-cpp", build("cuda"), SPARSE, "cuda", [2]),
        ("cuda", None, "synthetic", None, SPARSE, "cuda", [0, 2]),
        ("cuda", 1, "vllm", None, NVIDIA, "cuda", [1]),
        ("rocm", 1, "llama-cpp", build("rocm", count=2), BARE, "rocm", [1]),
        ("vulkan", None, "llama-cpp", build("vulkan", "cuda"), NVIDIA, "vulkan", [0]),
        ("metal", 0, "llama-cpp", build("metal"), BARE, "metal", [0]),
    ],
)
def test_what_is_asked_for_comes_to_what_driver_and_engine_both_have(
    asked: str,
    number: int | None,
    engine: str,
    its_build: EngineBuild | None,
    here: MachineReading,
    backend: str,
    devices: list[int],
) -> None:
    choice = choose(asked, number, engine, its_build, here)
    assert (choice.backend, [found.index for found in choice.devices]) == (backend, devices)
    assert all(found.backend == backend for found in choice.devices)


@pytest.mark.parametrize(
    ("asked", "number", "engine", "its_build", "here", "field", "words"),
    [
        ("abacus", None, "llama-cpp", FOR_CPU, NVIDIA, "backend", "no backend 'abacus'"),
        ("", None, "llama-cpp", FOR_CPU, BARE, "backend", "no backend ''"),
        ("CUDA", None, "llama-cpp", build("cuda"), NVIDIA, "backend", "cuda (2 x NVIDIA H100)"),
        ("x" * 10_000, None, "llama-cpp", FOR_CPU, BARE, "backend", "x" * 40 + "'"),
        ("sycl", None, "llama-cpp", build("sycl"), BARE, "backend", "here there is cpu."),
        # The driver has it, the build has not: never the processor in silence.
        ("auto", None, "llama-cpp", FOR_CPU, NVIDIA, "backend", "This machine has 2 x NVIDIA H100, but"),
        ("auto", 0, "llama-cpp", FOR_CPU, NVIDIA, "backend", "whl/cu128"),
        ("cuda", None, "llama-cpp", FOR_CPU, NVIDIA, "backend", "[engine.NAME] python"),
        ("cuda", None, "llama-cpp", FOR_CPU, SPARSE, "backend", "NVIDIA H100, NVIDIA L4"),
        ("cuda", None, "llama-cpp", build("vulkan"), NVIDIA, "backend", "docs/install.md"),
        ("auto", None, "llama-cpp", FAILED, NVIDIA, "backend", "No module named 'xllamacpp'"),
        ("cuda", None, "llama-cpp", FAILED, BARE, "backend", "could not be found out"),
        # The build remembers what its driver no longer has.
        ("cuda", None, "llama-cpp", build("cuda"), LOST, "backend", "no driver reports a device"),
        ("auto", None, "llama-cpp", build("cuda"), LOST, "backend", "no driver reports a device"),
        ("auto", None, "llama-cpp", FAILED, LOST, "backend", "could not be found out"),
        # Neither has it, or only a build would see it.
        ("cuda", None, "llama-cpp", FOR_CPU, BARE, "backend", "built without CUDA"),
        ("rocm", None, "llama-cpp", FOR_CPU, BARE, "backend", "whl/rocm-7.2.4"),
        ("vulkan", None, "llama-cpp", build("cuda"), NVIDIA, "backend", "whl/vulkan"),
        ("metal", None, "llama-cpp", FOR_CPU, BARE, "backend", "'cpu' runs on the processor"),
        ("cuda", None, "vllm", None, BARE, "backend", "no driver reports a device"),
        ("rocm", None, "vllm", None, NVIDIA, "backend", "Here there is cpu, cuda (2 x NVIDIA H100)."),
        ("cuda", None, "synthetic", None, BARE, "backend", "no driver reports a device"),
        # The device.
        ("cuda", 2, "llama-cpp", build("cuda"), NVIDIA, "device", "0 (NVIDIA H100), 1 (NVIDIA H100)"),
        ("auto", 1, "llama-cpp", build("cuda"), SPARSE, "device", "2 (NVIDIA L4)"),
        ("auto", 10**30, "synthetic", None, NVIDIA, "device", "There is no device"),
        ("cuda", -1, "llama-cpp", build("cuda"), NVIDIA, "device", "There is no device -1"),
        ("cpu", 1, "llama-cpp", build("cuda"), NVIDIA, "device", "cpu has device 0 alone"),
        ("auto", 1, "llama-cpp", FOR_CPU, BARE, "device", "cpu has device 0 alone"),
        ("cpu", -1, "synthetic", None, BARE, "device", "There is no device -1"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(
    asked: str,
    number: int | None,
    engine: str,
    its_build: EngineBuild | None,
    here: MachineReading,
    field: str,
    words: str,
) -> None:
    with pytest.raises(InvalidField) as refused:
        choose(asked, number, engine, its_build, here)
    assert refused.value.details["field"] == field
    assert words in refused.value.message
    assert len(refused.value.message) < 1000


def test_cuda_devices_are_read_by_their_driver_where_it_can_be() -> None:
    live = choose("cuda", None, "llama-cpp", build("cuda"), NVIDIA).devices
    assert [(found.name, found.is_live) for found in live] == [("NVIDIA H100", True)] * 2
    without_driver = choose("cuda", None, "llama-cpp", build("cuda"), BARE).devices
    assert [(found.name, found.is_live) for found in without_driver] == [("cuda GPU", False)]


def test_the_command_that_would_help_is_given_by_itself_too() -> None:
    with pytest.raises(InvalidField) as refused:
        choose("auto", None, "llama-cpp", FOR_CPU, NVIDIA)
    details: dict[str, Any] = refused.value.details
    assert details["install"] in refused.value.message
    assert details["install"].startswith("pip install xllamacpp ")


def test_another_build_that_cannot_be_asked_gets_no_processor_in_silence():
    with pytest.raises(InvalidField, match="could not be found out: No module named 'xllamacpp'"):
        choose("auto", None, "rocm", FAILED, BARE)
