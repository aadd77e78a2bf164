"""A process that maps the file *argv[1]*, reads all of it and, where it may, locks the first *argv[2]* bytes."""

import ctypes
import mmap
import os
import signal
import sys


def main(path: str, size: int) -> None:
    descriptor = os.open(path, os.O_RDWR)
    memory = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
    memory[::4096]
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    failed = ctypes.CDLL(None).mlock(ctypes.c_void_p(address), ctypes.c_size_t(size))
    os.write(1, b"refused\n" if failed else b"locked\n")
    signal.pause()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
