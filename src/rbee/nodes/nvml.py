"""One look at all NVIDIA GPUs through the driver's own library (NVML). Every call blocks, and may hang."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rbee.core.resources import DeviceReading

DRIVER: Final = "driver"
"""The name under which a problem of the driver as a whole is told; a device's is its number."""

_REMEMBERED_PIDS: Final = 4096
_SUSPICIOUS_USE: Final = 2**30
"""Bytes that somebody must have taken: what the driver reserves for itself of a device stays below."""


@dataclass(frozen=True, slots=True)
class Look:
    """``problems``: why a device, or the whole driver, is not there; by its number, or DRIVER.

    ``nothing_for``: seconds for which another look would find as little, 0 where there is a driver. ``is_failing``:
    whether it does not work, or has lost a device; a driver that was never here does not fail.
    """

    devices: tuple[DeviceReading, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)
    nothing_for: float = 0.0
    is_failing: bool = False


@dataclass(frozen=True, slots=True)
class _Device:
    index: int
    handle: Any
    name: str
    uuid: str


class Nvml:
    """The driver's library, begun at the first look, and again no sooner than *retry_interval* seconds after it failed
    or a device was missing: a driver that is loaded later is found. To be used by one thread alone.

    A device keeps the number under which it was seen first: the driver counts anew when one is gone, claims do not.
    """

    def __init__(self, retry_interval: float) -> None:
        self._retry_interval = retry_interval
        self._binding: Any = None
        self._devices: list[_Device] = []
        self._numbers: dict[str, int] = {}
        self._missing: dict[str, str] = {}
        self._sliced: dict[str, str] = {}
        self._next_begin = float("-inf")
        self._is_begun = False
        self._is_absent = False
        self._seen_pids: dict[int, None] = {}

    def look(self, now: float) -> Look:
        """What is there at *now*, seconds of any clock that does not go back."""
        if now >= self._next_begin and (not self._is_begun or self._missing):
            self._next_begin = now + self._retry_interval
            self._try_to_begin()
        devices = tuple(reading for device in self._devices if (reading := self._read(device)) is not None)
        nothing_for = 0.0 if self._is_begun else max(0.0, self._next_begin - now)
        is_failing = bool(self._missing) and not self._is_absent
        return Look(devices, {**self._missing, **self._sliced}, nothing_for, is_failing)

    def _try_to_begin(self) -> None:
        try:
            # Only here, in the thread that may wait: it takes 20 ms.
            import pynvml  # noqa: PLC0415
        except (ImportError, OSError) as error:
            # No descriptor left, say. Whoever asks later shall find this thread alive.
            self._missing = {DRIVER: f"its binding cannot be loaded ({error})"}
            return
        self._binding = pynvml
        self._is_absent = False
        try:
            self._begin()
        except pynvml.NVMLError as error:
            self._end()
            self._is_absent = error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
            self._missing = {DRIVER: self._sentence(error)}

    def _begin(self) -> None:
        self._end()
        self._binding.nvmlInit()
        self._is_begun = True
        self._missing, self._sliced = {}, {}
        for index in range(self._binding.nvmlDeviceGetCount()):
            device = self._guarded(index, self._identify, index)
            if device is not None:
                self._devices.append(device)
        self._devices.sort(key=lambda device: device.index)
        for uuid, number in self._numbers.items():
            if all(device.uuid != uuid for device in self._devices) and str(number) not in self._sliced:
                self._missing.setdefault(str(number), "the driver no longer lists it")

    def _end(self) -> None:
        self._devices = []
        if self._is_begun:
            self._is_begun = False
            try:
                self._binding.nvmlShutdown()
            except self._binding.NVMLError:
                return  # it is begun anew in any case

    def _guarded(self, index: int, ask: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return ask(*arguments)
        except self._binding.NVMLError as error:
            self._missing[str(index)] = self._sentence(error)
            return None

    def _identify(self, index: int) -> _Device | None:
        nvml = self._binding
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid = _text(nvml.nvmlDeviceGetUUID(handle))
        if uuid not in self._numbers:
            taken = self._numbers.values()
            self._numbers[uuid] = index if index not in taken else max(taken) + 1
        number = self._numbers[uuid]
        if self._is_sliced(handle):
            self._sliced[str(number)] = "it is in MIG mode, whose slices are not supported"
            return None
        return _Device(number, handle, _text(nvml.nvmlDeviceGetName(handle)), uuid)

    def _is_sliced(self, handle: Any) -> bool:
        nvml = self._binding
        try:
            return bool(nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE)
        except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
            return False  # a GPU that cannot be sliced, or a driver from before there was MIG

    def _read(self, device: _Device) -> DeviceReading | None:
        # The first version of this call: every driver has it, and the later one tells the same total and free.
        memory = self._guarded(device.index, self._binding.nvmlDeviceGetMemoryInfo, device.handle)
        if memory is None:
            return None
        self._missing.pop(str(device.index), None)
        return DeviceReading(
            backend="cuda",
            index=device.index,
            name=device.name,
            total_bytes=int(memory.total),
            free_bytes=int(memory.free),
            uuid=device.uuid,
            held=self._held(device.handle, int(memory.used)),
        )

    def _held(self, handle: Any, used_bytes: int) -> dict[int, int] | None:
        """Bytes by pid; None where the list is not of this machine's processes as we see them.

        In a container without the host's pids the driver names processes that are not there, or those that are without
        their memory, or none; so a list counts only where all of it is here, and explains what was taken.
        """
        nvml = self._binding
        try:
            listed = self._listed(handle)
        except nvml.NVMLError:
            return None
        held: dict[int, int] = {}
        for process in listed:
            if process.usedGpuMemory is None or not self._is_here(process.pid):
                return None
            held[process.pid] = held.get(process.pid, 0) + int(process.usedGpuMemory)
        return None if not sum(held.values()) and used_bytes > _SUSPICIOUS_USE else held

    def _is_here(self, pid: int) -> bool:
        """Whether a process is one that we see, or saw: what has just ended may be named until its memory is free."""
        if os.path.exists(f"/proc/{pid}"):
            self._seen_pids[pid] = None
            if len(self._seen_pids) > _REMEMBERED_PIDS:
                del self._seen_pids[next(iter(self._seen_pids))]
        return pid in self._seen_pids

    def _listed(self, handle: Any) -> list[Any]:
        nvml = self._binding
        try:
            return list(nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle))
        except nvml.NVMLError_FunctionNotFound:
            return list(nvml.nvmlDeviceGetComputeRunningProcesses_v2(handle))

    def _sentence(self, error: Exception) -> str:
        """The binding's words, and what they mean where that is not what they say."""
        nvml = self._binding
        meanings = {
            nvml.NVML_ERROR_FUNCTION_NOT_FOUND: "the driver is too old",
            nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the library and the loaded driver are of different versions",
            nvml.NVML_ERROR_LIBRARY_NOT_FOUND: "there is no NVIDIA driver (libnvidia-ml.so.1) here",
        }
        meaning = meanings.get(getattr(error, "value", None))
        return str(error) if meaning is None else f"{meaning} ({error})"


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
