"""Which backend and devices a worker may use: what driver and engine both have, and never the CPU in silence."""

from dataclasses import dataclass

from rbee.core.resources import DeviceReading, EngineBuild, MachineReading

BACKENDS = ("cpu", "cuda", "rocm", "vulkan", "metal")


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
    raise NotImplementedError
