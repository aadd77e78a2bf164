"""What an engine's build can use, asked of the real xllamacpp and of interpreters that answer oddly."""

import json
import os
import sys
from pathlib import Path

import anyio
import pytest

from rbee.core.resources import DeviceReading, EngineBuild
from rbee.nodes.engine_devices import EngineDevices
from tests.hives import is_alive, wait_for

pytestmark = pytest.mark.anyio

GPU = {"description": "NVIDIA H100", "memory_free": 70, "memory_total": 80, "type": "GGML_BACKEND_DEVICE_TYPE_GPU"}
CPU = {**GPU, "name": "CPU", "type": "GGML_BACKEND_DEVICE_TYPE_CPU"}


def interpreter(tmp_path: Path, *lines: str) -> str:
    """A program that takes what a Python would, notes that it was run, and does these lines of shell."""
    path = tmp_path / "python"
    path.write_text("\n".join(("#!/bin/sh", f"echo run >> {tmp_path}/runs", *lines)) + "\n")
    path.chmod(0o755)
    return str(path)


def saying(*devices: dict[str, object]) -> str:
    return f"echo 'rbee-devices:{json.dumps(devices)}'"


def runs(tmp_path: Path) -> int:
    return len((tmp_path / "runs").read_text().splitlines())


async def build_of(python: str, ask_timeout: float = 30.0) -> EngineBuild:
    return await EngineDevices(os.environ, ask_timeout).build_of(python)


async def test_the_installed_engine_is_for_the_processor_alone():
    assert await build_of("") == EngineBuild()


@pytest.mark.parametrize(
    ("name", "backend", "index"),
    [
        ("CUDA0", "cuda", 0),
        ("ROCm12", "rocm", 12),
        ("Vulkan1", "vulkan", 1),
        ("MTL0", "metal", 0),
        ("Metal", "metal", 0),
        ("SYCL3", "sycl", 3),
    ],
)
async def test_devices_are_called_by_our_names(tmp_path, name, backend, index):
    build = await build_of(interpreter(tmp_path, saying(CPU, {**GPU, "name": name})))
    reading = DeviceReading(backend, index, "NVIDIA H100", total_bytes=80, free_bytes=70, is_live=False)
    assert build == EngineBuild((reading,))


async def test_what_a_driver_prints_around_the_answer_does_no_harm(tmp_path):
    noise = "echo 'ggml_cuda_init: found 1 CUDA devices'; printf 'no end of line'; echo; echo warning >&2"
    assert (await build_of(interpreter(tmp_path, noise, saying({**GPU, "name": "CUDA0"}), noise))).backends == {"cuda"}


async def test_an_engine_that_is_not_installed_there_is_a_problem_in_words(tmp_path):
    python = interpreter(tmp_path, f'exec {sys.executable} -S "$@"')
    assert "No module named 'xllamacpp'" in (await build_of(python)).problem


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("exit 3",), "status 3"),
        (("kill -SEGV $$",), "status -11"),
        (("echo 'rbee-devices:[{}]'",), "cannot be read"),
        (("echo 'rbee-devices:7'",), "cannot be read"),
        (("echo rbee-devices:", "exit 1"), "cannot be read"),
        (("yes | head -c 3000000",), "could not be asked"),
    ],
)
async def test_an_engine_that_does_not_answer_is_a_problem_in_words(tmp_path, lines, words):
    assert words in (await build_of(interpreter(tmp_path, *lines))).problem


async def test_an_interpreter_that_is_not_there_is_a_problem_in_words(tmp_path):
    assert "cannot be run" in (await build_of(str(tmp_path / "nothing"))).problem


async def test_an_engine_that_hangs_is_ended_with_all_that_it_started(tmp_path):
    python = interpreter(tmp_path, f"sleep 600 & echo $! > {tmp_path}/child", "wait")
    assert "within 0.5 s" in (await build_of(python, ask_timeout=0.5)).problem
    child = int((tmp_path / "child").read_text())
    wait_for(lambda: not is_alive(child), "its child is gone")


async def test_one_child_answers_all_who_ask_at_once_and_later(tmp_path):
    devices = EngineDevices(os.environ)
    python = interpreter(tmp_path, saying(CPU))
    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(devices.build_of, python)
    await devices.build_of(python)
    assert runs(tmp_path) == 1


async def test_a_failure_is_remembered_for_a_while_only(tmp_path):
    devices = EngineDevices(os.environ, kept=0.0)
    python = interpreter(tmp_path, "exit 1")
    await devices.build_of(python)
    await devices.build_of(python)
    assert runs(tmp_path) == 2
    devices = EngineDevices(os.environ)
    await devices.build_of(python)
    await devices.build_of(python)
    assert runs(tmp_path) == 3


async def test_who_gives_up_waiting_ends_the_child(tmp_path):
    python = interpreter(tmp_path, f"echo $$ > {tmp_path}/child", "sleep 600")
    child = tmp_path / "child"
    with anyio.CancelScope() as asking:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(EngineDevices(os.environ).build_of, python)
            await anyio.to_thread.run_sync(wait_for, lambda: child.exists() and child.read_text(), "the child runs")
            asking.cancel()
    pid = int(child.read_text())
    wait_for(lambda: not is_alive(pid), "its child is gone")


async def test_the_child_sees_no_secret(tmp_path):
    python = interpreter(tmp_path, f"env > {tmp_path}/seen", saying(CPU))
    await EngineDevices({**os.environ, "RBEE_API_TOKEN": "secret", "HF_TOKEN": "secret"}).build_of(python)
    assert "secret" not in (tmp_path / "seen").read_text()
