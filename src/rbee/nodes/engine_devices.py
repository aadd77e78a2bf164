"""Asks an interpreter what its xllamacpp was built for, in a short-lived child: the hive never loads an engine."""

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio

from rbee.core.environment import inherited
from rbee.core.resources import DeviceReading, EngineBuild
from rbee.nodes.lanes import BUILDS

ASK_TIMEOUT: Final = 60.0
"""Seconds for the child: it loads the engine's libraries, and with them the drivers of GPUs."""
PROBLEM_KEPT: Final = 60.0
"""Seconds after which an interpreter that could not be asked is asked again."""

_STAMP_INTERVAL: Final = 5.0
"""Seconds between two looks whether another build was installed."""
_END_TIMEOUT: Final = 5.0
"""Seconds for a killed child to be gone; one that hangs in a driver is left to whoever starts the next child."""
_LONGEST_ANSWER: Final = 1 << 20
_MARK: Final = "rbee-devices:"
_QUESTION: Final = f"""
import json, sys, xllamacpp
found = [{{key: getattr(value, "name", value) for key, value in device.items() if key != "caps"}}
         for device in xllamacpp.get_device_info()]
sys.stdout.write("\\n{_MARK}" + json.dumps(found, default=str) + "\\n")
"""
_ANSWER: Final = re.compile(rf"^{_MARK}(.*)\n".encode(), re.MULTILINE)

_BACKENDS: Final = {"mtl": "metal", "hip": "rocm"}
"""Where ggml's name is another than ours; it numbers its devices, as in CUDA0, ROCm1, Vulkan0, MTL0."""


@dataclass(slots=True)
class _Known:
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    stamp: tuple[int, ...] = ()
    build: EngineBuild | None = None
    looked_at: float = float("-inf")
    until: float = float("-inf")


class EngineDevices:
    """One answer an interpreter, for as long as nothing is installed in its environment."""

    def __init__(self, environ: Mapping[str, str], timeout: float = ASK_TIMEOUT, kept: float = PROBLEM_KEPT) -> None:
        self._environ = {**inherited(environ), "PYTHONSAFEPATH": "1"}
        self._timeout = timeout
        self._kept = kept
        self._known: dict[str, _Known] = {}

    async def build_of(self, python: str) -> EngineBuild:
        """Of the interpreter at *python*, empty for our own. All who ask meanwhile wait for the same child."""
        path = python or sys.executable
        known = self._known.setdefault(path, _Known())
        async with known.lock:
            now = anyio.current_time()
            if known.build is not None and now < min(known.until, known.looked_at + _STAMP_INTERVAL):
                return known.build
            stamp = await BUILDS.run(_stamp, path)
            known.looked_at = now
            if known.build is None or stamp != known.stamp or now >= known.until:
                build = await ask(path, self._environ, self._timeout)
                known.stamp, known.build = stamp, build
                known.until = anyio.current_time() + (self._kept if build.problem else float("inf"))
            return known.build


async def ask(python: str, environ: Mapping[str, str], ask_timeout: float) -> EngineBuild:
    """The answer of a child, or as ``problem`` why there is none."""
    try:
        child = await BUILDS.run(_start, python, environ)
    except OSError as error:
        return EngineBuild(problem=f"{python} cannot be run: {error.strerror}")
    try:
        return await BUILDS.run(_listen, child, python, ask_timeout, abandon_on_cancel=True)
    finally:
        # Whoever was cancelled leaves a thread behind, which sees the end of its child then.
        _kill(child)


def _stamp(python: str) -> tuple[int, ...]:
    """Changes when the interpreter does, and when something is installed beside it."""
    folders = sorted(Path(python).parent.parent.glob("lib/python*/site-packages"))
    stamps = []
    for path in (Path(python), *folders):
        with contextlib.suppress(OSError):
            stamps.append(path.stat().st_mtime_ns)
    return tuple(stamps)


def _start(python: str, environ: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [python, "-c", _QUESTION],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(environ),
        start_new_session=True,
    )


def _kill(child: "subprocess.Popen[bytes]") -> None:
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)


def _listen(child: "subprocess.Popen[bytes]", python: str, timeout: float) -> EngineBuild:
    with contextlib.closing(child.stdout) as output:  # type: ignore[type-var]
        said, is_over = _read(output, time.monotonic() + timeout)
    answer = _ANSWER.search(said)
    # An answer that ends the wait is not yet the end of who gave it.
    _kill(child)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_END_TIMEOUT)
    if answer is not None:
        return _build(answer[1], python)
    if is_over:
        return EngineBuild(problem=f"{python} did not say within {timeout:g} s what its xllamacpp can use")
    return EngineBuild(problem=f"the xllamacpp of {python} could not be asked: {_last_line(said, child.returncode)}")


def _read(output: Any, deadline: float) -> tuple[bytes, bool]:
    """What came until the answer or the end of it, and whether the time ran out before either."""
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(left):
                continue
            chunk = os.read(output.fileno(), 1 << 16)
            said += chunk
            if not chunk or len(said) > _LONGEST_ANSWER or _ANSWER.search(said):
                return said, False
    return said, True


def _last_line(said: bytes, status: int | None) -> str:
    lines = [line.strip() for line in said[-4096:].decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"it ended with status {status}"


def _build(answer: bytes, python: str) -> EngineBuild:
    try:
        found = json.loads(answer)
        devices = [_device(device) for device in found if "GPU" in str(device["type"])]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        return EngineBuild(problem=f"the xllamacpp of {python} answered what cannot be read ({error!r})"[:300])
    return EngineBuild(tuple(devices))


def _device(said: Mapping[str, Any]) -> DeviceReading:
    name = str(said["name"])
    kind = name.rstrip("0123456789")
    total = max(0, int(said["memory_total"]))
    return DeviceReading(
        backend=_BACKENDS.get(kind.lower(), kind.lower()),
        index=int(name[len(kind) :] or 0),
        name=str(said["description"])[:200],
        total_bytes=total,
        free_bytes=min(total, max(0, int(said["memory_free"]))),
        is_live=False,
    )
