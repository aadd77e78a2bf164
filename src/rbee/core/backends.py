"""Which backend and devices a worker may use: what driver and engine both have, and never the CPU in silence."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rbee.core.engine_args import LLAMA_CPP
from rbee.core.errors import InvalidField
from rbee.core.resources import DeviceReading, EngineBuild, MachineReading

BACKENDS = ("cpu", "cuda", "rocm", "vulkan", "metal")

_PREFERRED: Final = ("cuda", "rocm", "metal", "vulkan")
"""What 'auto' takes first: a vendor's own before Vulkan, which runs on all and is slower."""

_INDEX: Final = "pip install xllamacpp --force-reinstall --index-url https://xorbitsai.github.io/xllamacpp/whl/"
_INSTALL: Final = {
    "cuda": f"{_INDEX}cu128",
    "rocm": f"{_INDEX}rocm-7.2.4",
    "vulkan": f"{_INDEX}vulkan",
    "metal": "pip install xllamacpp",
}
"""As xllamacpp's own README has it: the wheels for GPUs are in indexes of its project; Metal's is the usual one."""

_NAMES: Final = {"cuda": "CUDA", "rocm": "ROCm", "vulkan": "Vulkan", "metal": "Metal"}
_SHOWN: Final = 16


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend, and the devices of it that may be taken (none for the CPU)."""

    backend: str
    devices: tuple[DeviceReading, ...] = ()


def choose(asked: str, device: int | None, engine: str, build: EngineBuild | None, machine: MachineReading) -> Choice:
    """What the backend *asked* for ('auto' included) and the *device* (None: any) come to on this *machine*.

    *engine*: its name, for the messages; *build*: what the engine's own build can use, None for an engine that cannot
    be asked (a command, or synthetic), where the driver's word alone counts. Raises InvalidField (422), which names the
    field and says what there is, or how to install what is missing.
    """
    if asked not in ("auto", *BACKENDS):
        raise InvalidField(
            f"There is no backend '{asked[:40]}'. Known are auto, {', '.join(BACKENDS)}; here there is "
            f"{_listed(offered(build, machine))}.",
            field="backend",
        )
    there = offered(build, machine)
    backend = _of_auto(device, engine, build, machine, there) if asked == "auto" else asked
    if backend == "cpu":
        if device not in (None, 0):
            raise InvalidField(f"There is no device {device}: the backend cpu has device 0 alone.", field="device")
        return Choice("cpu")
    if backend not in there:
        raise _missing(backend, engine, build, machine, there)
    return Choice(backend, _chosen(backend, device, there[backend]))


def offered(build: EngineBuild | None, machine: MachineReading) -> Mapping[str, tuple[DeviceReading, ...]]:
    """The devices by backend that both the driver and the engine's build have.

    A device that both report is read by the driver, which knows what is free now. What the build reports alone is what
    its driver told it then: for ROCm, Vulkan and Metal, and for CUDA where there is no NVML (as on some boards). It
    counts for nothing once that driver fails.
    """
    read = {backend: _of(backend, machine.devices) for backend in _PREFERRED}
    if build is None:
        return {backend: devices for backend, devices in read.items() if devices}
    told = {b: () if b in machine.failing else _of(b, build.devices) for b in _PREFERRED}
    return {b: read[b] or told[b] for b in _PREFERRED if b in build.backends and (read[b] or told[b])}


def _of(backend: str, devices: tuple[DeviceReading, ...]) -> tuple[DeviceReading, ...]:
    return tuple(sorted((device for device in devices if device.backend == backend), key=lambda found: found.index))


def _of_auto(
    device: int | None,
    engine: str,
    build: EngineBuild | None,
    machine: MachineReading,
    there: Mapping[str, tuple[DeviceReading, ...]],
) -> str:
    if engine == "synthetic" and device is None:
        return "cpu"  # It computes nothing, so a device is only ever pretended.
    found = next((backend for backend in _PREFERRED if backend in there), None)
    if found is None:
        may_have = () if build is None else machine.failing if build.problem else machine.failing & build.backends
        lost = [backend for backend in _PREFERRED if backend in may_have]
        lacking = [*lost, *(device.backend for device in machine.devices)]
        if lacking:
            raise _missing(lacking[0], engine, build, machine, there)
        if build is not None and build.problem and engine != LLAMA_CPP:
            # Somebody chose another build, for a device most likely: what it has is not known.
            raise _missing(_PREFERRED[0], engine, build, machine, there)
    return found or "cpu"


def _chosen(backend: str, device: int | None, devices: tuple[DeviceReading, ...]) -> tuple[DeviceReading, ...]:
    chosen = tuple(found for found in devices if device is None or found.index == device)
    if not chosen:
        numbers = ", ".join(f"{found.index} ({found.name})" for found in devices[:_SHOWN])
        raise InvalidField(
            f"There is no device {device} for the backend {backend}. Here there is {numbers}.", field="device"
        )
    return chosen


def _missing(
    backend: str,
    engine: str,
    build: EngineBuild | None,
    machine: MachineReading,
    there: Mapping[str, tuple[DeviceReading, ...]],
) -> InvalidField:
    """Why a backend cannot be used, and what to do: another build where there is a device for it, or where there may be
    one that only such a build would see."""
    name, read = _NAMES[backend], _of(backend, machine.devices)
    on_processor = "The backend 'cpu' runs on the processor."
    if build is not None and build.problem:
        text = f"What the engine '{engine}' can use could not be found out: {build.problem}. {on_processor}"
        return InvalidField(text, field="backend")
    if build is None or (backend == "cuda" and backend in build.backends):
        text = f"The backend '{backend}' is not there: no driver reports a device for it. Here there is "
        return InvalidField(f"{text}{_listed(there)}.", field="backend")
    found = f"This machine has {_counted(read)}, but the" if read else "The"
    remedy = _INSTALL[backend]
    text = (
        f"{found} xllamacpp of the engine '{engine}' reports no {name} device: it was built without {name}, or cannot "
        f"reach the driver. Install a build with {name} in an environment of its own ({remedy}) and name its Python in "
        f"the settings file ([engine.NAME] python); docs/install.md describes it. {on_processor}"
    )
    return InvalidField(text, field="backend", install=remedy)


def _counted(devices: tuple[DeviceReading, ...]) -> str:
    names = dict.fromkeys(device.name for device in devices)
    counts = [(name, sum(device.name == name for device in devices)) for name in names]
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in counts)


def _listed(there: Mapping[str, tuple[DeviceReading, ...]]) -> str:
    return ", ".join(["cpu", *(f"{backend} ({_counted(devices)})" for backend, devices in there.items())])
