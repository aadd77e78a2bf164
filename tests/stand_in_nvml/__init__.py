"""NVIDIA's driver library, played: a program started with ``environ`` finds it in the place of the real one.

with stand_in(tmp_path, gpus=2) as driver:
    with running_hive(..., environ=driver.environ): ...
    driver.set_use(0, pid, 5 * GIB)
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.tools import need_tool

SOURCE = Path(__file__).with_name("nvml.c")
GIB = 2**30

UNKNOWN_MEMORY = -1
"""For ``set_use``: the driver does not tell what this process has."""

DRIVER_NOT_LOADED = 9
GPU_IS_LOST = 15
VERSION_MISMATCH = 18
"""Codes of NVML's errors, for ``fail_init`` and ``lose``."""


@dataclass
class Gpu:
    """``hidden_bytes``: taken by nobody that the driver would name. ``mig``: -1 where it cannot be sliced."""

    uuid: str
    name: str
    total_bytes: int
    hidden_bytes: int = 0
    error: int = 0
    mig: int = -1
    processes: dict[int, int] = field(default_factory=dict)

    @property
    def used_bytes(self) -> int:
        return self.hidden_bytes + sum(max(0, used) for used in self.processes.values())


class StandIn:
    """*folder* gets the library and its state; a change holds for the driver's next call on."""

    def __init__(self, folder: Path, gpus: int, total_bytes: int, name: str) -> None:
        self.gpus = [Gpu(uuid_of(index), name, total_bytes) for index in range(gpus)]
        self._folder = folder
        self._state = folder / "nvml.state"
        self._init = 0
        self._hangs = False
        self._write()

    @property
    def library(self) -> Path:
        return self._folder / "libnvidia-ml.so.1"

    @property
    def environ(self) -> dict[str, str]:
        """For the process that shall find it: variables to set beside its others."""
        path = os.pathsep.join(filter(None, (str(self._folder), os.environ.get("LD_LIBRARY_PATH", ""))))
        return {"LD_LIBRARY_PATH": path, "STAND_IN_NVML": str(self._state)}

    def set_use(self, gpu: int, pid: int, used_bytes: int) -> None:
        """What process *pid* has of that device: 0 for nothing any more, UNKNOWN_MEMORY for not to be seen."""
        if used_bytes == 0:
            self.gpus[gpu].processes.pop(pid, None)
        else:
            self.gpus[gpu].processes[pid] = used_bytes
        self._write()

    def set_foreign_use(self, gpu: int, used_bytes: int) -> None:
        """What is taken by somebody whom the driver does not name."""
        self.gpus[gpu].hidden_bytes = used_bytes
        self._write()

    def lose(self, gpu: int, error: int = GPU_IS_LOST) -> None:
        self.gpus[gpu].error = error
        self._write()

    def bring_back(self, gpu: int) -> None:
        self.lose(gpu, 0)

    def unlist(self, gpu: int) -> None:
        """The driver no longer counts it, so that those after it move up."""
        del self.gpus[gpu]
        self._write()

    def set_mig(self, gpu: int, mig: int) -> None:
        self.gpus[gpu].mig = mig
        self._write()

    def fail_init(self, code: int) -> None:
        """What the driver answers when it is begun; 0: it works."""
        self._init = code
        self._write()

    def hang(self, hangs: bool = True) -> None:
        """Every call waits until it is told otherwise."""
        self._hangs = hangs
        self._write()

    def remove(self) -> None:
        """No library there, as on a machine without the driver."""
        self.library.rename(self.library.with_suffix(".away"))

    def install(self) -> None:
        self.library.with_suffix(".away").rename(self.library)

    def _write(self) -> None:
        lines = [f"init {self._init}", *(["hang"] if self._hangs else [])]
        for index, gpu in enumerate(self.gpus):
            lines.append(f"gpu {gpu.uuid} {gpu.total_bytes} {gpu.used_bytes} {gpu.error} {gpu.mig} {gpu.name}")
            lines += [f"proc {index} {pid} {used}" for pid, used in gpu.processes.items()]
        fresh = self._state.with_suffix(".new")
        fresh.write_text("\n".join(lines) + "\n")
        fresh.replace(self._state)


def uuid_of(index: int) -> str:
    """What the device that is first seen under this number is called."""
    return f"GPU-{index:08x}-5ca1-ab1e-0000-0123456789ab"


@contextmanager
def stand_in(
    folder: Path, gpus: int = 1, total_bytes: int = 24 * GIB, name: str = "NVIDIA Stand-in", era: str = ""
) -> Iterator[StandIn]:
    """A driver with so many *gpus*; *era* is '', 'OLD_DRIVER' or 'ANCIENT_DRIVER'. Skips where there is no compiler."""
    place = folder / "stand-in-nvml"
    place.mkdir()
    driver = StandIn(place, gpus, total_bytes, name)
    options = ["-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1"]
    options += [
        f"-D{each}" for each in ("OLD_DRIVER", "ANCIENT_DRIVER")[: ("", "OLD_DRIVER", "ANCIENT_DRIVER").index(era)]
    ]
    subprocess.run([need_tool("cc"), *options, "-o", driver.library, SOURCE], check=True, timeout=60)
    try:
        yield driver
    finally:
        # Whoever still waits in it shall be able to end.
        driver.hang(False)
