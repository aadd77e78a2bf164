"""Reads the GPUs as a hive does, in a process of its own: the driver's library is loaded once a process.

A line on its input is how many ask at once, "starved" behind it for while no descriptor is left; its answer is a line
of JSON. What it logs stands in the next answer.
"""

import json
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import anyio
import structlog

from rbee.core.resources import DeviceReading
from rbee.nodes.gpus import NvidiaGpus, Pace
from rbee.nodes.nvml import Look, Nvml

SAID: list[dict[str, Any]] = []


def main() -> None:
    structlog.configure(processors=[lambda _logger, level, said: _note({**said, "level": level})])
    anyio.run(read_when_told)


def _note(said: dict[str, Any]) -> dict[str, Any]:
    SAID.append(said)
    raise structlog.DropEvent


class Counting:
    """The real driver, and how often it was looked at."""

    def __init__(self, driver: Nvml) -> None:
        self.looks = 0
        self._driver = driver

    def look(self, now: float) -> Look:
        self.looks += 1
        return self._driver.look(now)


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, most))
    held: list[int] = []
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)


async def read_when_told() -> None:
    settings = json.loads(sys.argv[1])
    environ, max_age = settings.pop("environ"), settings.pop("max_age")
    pace = Pace(**settings)
    driver = Counting(Nvml(pace.retry_interval))
    gpus = NvidiaGpus(environ, driver, pace)
    async for line in anyio.wrap_file(sys.stdin):
        answers: list[tuple[DeviceReading, ...]] = []

        async def ask(answers: list[tuple[DeviceReading, ...]] = answers) -> None:
            answers.append(await gpus.read(max_age))

        ticks = 0
        count, _, starved = line.strip().partition(" ")
        with no_descriptor_left() if starved else nullcontext():
            async with anyio.create_task_group() as tasks:
                for _ in range(int(count)):
                    tasks.start_soon(ask)
                while len(answers) < int(count):
                    await anyio.sleep(0.01)
                    ticks += 1
        assert all(answer == answers[0] for answer in answers)
        told = {"devices": [asdict(device) for device in answers[0]], "said": SAID[:], "looks": driver.looks}
        told["is_failing"] = gpus.is_failing
        SAID.clear()
        sys.stdout.write(json.dumps({**told, "ticks": ticks}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
