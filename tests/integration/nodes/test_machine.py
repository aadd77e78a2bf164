"""One look at this machine, while a real file system fills."""

import json
import subprocess
import sys

import anyio
import pytest

from rbee.core.resources import DeviceReading, EngineBuild
from rbee.nodes.disk import Disk
from rbee.nodes.machine import LocalMachine
from tests.small_disk import with_small_disk

pytestmark = pytest.mark.anyio
GPU = DeviceReading("cuda", 0, "a card", 100, 90)
MIB = 2**20

FILLED = """
import json, os, sys
from pathlib import Path
from rbee.nodes import disk
directory = Path(sys.argv[1])
def tell():
    found = disk.read(directory / "models")
    print(json.dumps([found.total_bytes, found.free_bytes]))
tell()
(directory / "file").write_bytes(bytes(1 << 20))
tell()
"""


class Card:
    is_failing = False

    async def read(self, max_age):
        return (GPU,)


class HangingCard(Card):
    async def read(self, max_age):
        await anyio.sleep_forever()


async def build_of(python):
    return EngineBuild(problem=f"there is no {python}")


async def test_a_look_has_memory_disks_and_devices(tmp_path):
    machine = LocalMachine(Disk(tmp_path / "models"), Disk(tmp_path), build_of, Card())
    found = await machine.look()
    assert 0 < found.memory.free_bytes < found.memory.total_bytes
    assert found.models_disk.path == str(tmp_path / "models")
    assert 0 < found.models_disk.free_bytes < found.models_disk.total_bytes == found.state_disk.total_bytes
    assert found.devices == (GPU,)
    assert (await machine.look()).at >= found.at


async def test_a_driver_that_fails_is_told_of_beside_the_devices_that_are_left(tmp_path):
    card = Card()
    machine = LocalMachine(Disk(tmp_path), Disk(tmp_path), build_of, card)
    assert (await machine.look()).failing == frozenset()
    card.is_failing = True
    assert (await machine.look()).failing == {"cuda"}


async def test_a_driver_that_takes_too_long_does_not_hold_up_the_rest(tmp_path):
    machine = LocalMachine(Disk(tmp_path), Disk(tmp_path), build_of, HangingCard())
    found = await machine.look(device_patience=0.0)
    assert found.memory.free_bytes > 0
    assert found.devices == ()


async def test_a_machine_has_no_devices_unless_somebody_reads_them(tmp_path):
    machine = LocalMachine(Disk(tmp_path), Disk(tmp_path), build_of)
    assert (await machine.look()).devices == ()
    assert (await machine.build_of("python9")).problem == "there is no python9"


def test_what_is_written_to_a_real_disk_is_missing_afterwards(tmp_path):
    command = [*with_small_disk(tmp_path, "size=4m"), sys.executable, "-c", FILLED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    before, after = map(json.loads, done.stdout.splitlines())
    assert before == [4 * MIB, 4 * MIB]
    assert after == [4 * MIB, 3 * MIB]
