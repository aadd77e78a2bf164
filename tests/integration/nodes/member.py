"""One member of a family, as a program of the standard library alone: it starts its children, says who it is, and
waits to be killed."""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
KEEPER = "RBEE_KEEPER"


def main(me: dict[str, Any]) -> None:
    if me["subreaper"]:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.read(0, 1)
    environ = dict(os.environ)
    if me["names_itself"]:
        environ[KEEPER] = f"{os.getpid()}:{started(os.getpid())}"
    for child in me["children"]:
        subprocess.Popen(
            [sys.executable, "-S", __file__, json.dumps(child)],
            stdin=subprocess.DEVNULL,
            env={} if child["bare"] else environ,
            start_new_session=child["setsid"],
        )
    listener = socket.create_server(("127.0.0.1", 0)) if me["listens"] else None
    held = bytearray(me["hold_bytes"])
    held[::4096] = b"x" * len(held[::4096])
    port = listener.getsockname()[1] if listener is not None else 0
    told = {"pid": os.getpid(), "port": port, "started": started(os.getpid())}
    os.write(1, json.dumps([me["name"], told]).encode() + b"\n")
    if not me["leaves"]:
        signal.pause()


def started(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
