"""What the keeper needs of an engine: how to start it and how to ask it. One class an engine."""

from typing import Final, NamedTuple, Protocol

from rbee.core.engine_args import Value
from rbee.worker.wire import Address, Answer, call

HEALTH_TIMEOUT: Final = 2.0
"""Seconds for the engine's answer to /health; one that takes longer is degraded."""

COUNTERS_TIMEOUT: Final = 1.0
"""Seconds for anything else. llama.cpp answers /metrics and /slots between two batches only, /health at any time, so no
answer to these says that it works, not that it hangs."""

Telemetry = dict[str, int | float]


class Plan(NamedTuple):
    """What one worker shall run.

    *names* are what clients may call the model, the alias first; *engine_args* are checked values by name; *python*
    runs the llama.cpp engine. *device_count*: devices that the engine sees, which share the model by *split* (as many
    numbers, or none for as the engine likes).
    """

    worker_id: str
    model: str
    names: tuple[str, ...]
    backend: str
    device_count: int
    host: str
    slots: int
    ctx_size: int
    prompt_cache_bytes: int
    engine_args: dict[str, Value]
    python: str
    split: tuple[float, ...] = ()
    template: tuple[str, ...] = ()
    health_path: str = "/health"


class Launch(NamedTuple):
    """An argument vector, and what the engine's environment holds beside the common part."""

    argv: list[str]
    environment: dict[str, str]


class Probe:
    """Questions to one running engine, with its key."""

    def __init__(self, host: str, port: int, key: str) -> None:
        self._address = Address(host, port)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def get(self, path: str, timeout: float = COUNTERS_TIMEOUT) -> Answer | None:
        """The answer, or None where none came."""
        try:
            return call(self._address, "GET", path, timeout=timeout, headers=self._headers)
        except OSError:
            return None

    def healthy(self, path: str) -> bool:
        answer = self.get(path, HEALTH_TIMEOUT)
        return answer is not None and answer.status == 200


class Engine(Protocol):
    """The methods with a probe run in the watcher's thread and raise nothing."""

    def launch(self, port: int, key: str) -> Launch: ...

    def ready(self, probe: Probe) -> bool:
        """Whether the engine behind the probe serves, and is this one and not a stranger on its port."""
        ...

    def healthy(self, probe: Probe) -> bool: ...

    def idle(self, probe: Probe) -> bool | None:
        """Whether no request is being worked on; None where this engine cannot tell at all."""
        ...

    def telemetry(self, probe: Probe) -> Telemetry:
        """What the engine counts of itself, known values only."""
        ...

    def lost_port(self, last_lines: list[str]) -> bool:
        """Whether an engine with these last lines ended because somebody else had taken its port."""
        ...
