"""A hive whose wall clock a test moves, while the machine's own stays as it is."""

import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("skewed_clock.c")


class WallClock:
    """*compiler* is the path of a C compiler; *folder* gets the library and the file with the offset."""

    def __init__(self, compiler: str, folder: Path) -> None:
        library = folder / "skewed_clock.so"
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True, timeout=60)
        self._offset = folder / "clock_offset"
        self._offset.write_bytes(struct.pack("=q", 0))
        self.environ = {"LD_PRELOAD": str(library), "RBEE_CHAOS_CLOCK": str(self._offset)}

    def move_to(self, seconds: int) -> None:
        """From now on the hive sees the real time plus *seconds*. In place: the file is mapped."""
        with self._offset.open("r+b") as file:
            file.write(struct.pack("=q", seconds))
