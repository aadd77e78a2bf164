"""A process and its fork that share *argv[1]* bytes of private memory and twice as many of shared memory."""

import mmap
import os
import signal
import sys


def main(size: int) -> None:
    private = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE)
    shared = mmap.mmap(-1, 2 * size)
    for memory in (private, shared):
        memory[::4096] = b"x" * len(memory[::4096])
    reading, writing = os.pipe()
    if os.fork() == 0:
        # Read alone: a write would make the private pages two.
        for memory in (private, shared):
            memory[::4096]
        os.write(writing, b"x")
        signal.pause()
    os.read(reading, 1)
    os.write(1, b"shared\n")
    signal.pause()


if __name__ == "__main__":
    main(int(sys.argv[1]))
