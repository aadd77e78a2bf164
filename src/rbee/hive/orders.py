"""From what somebody asked for to the worker that it means: defaults filled in, contradictions refused."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rbee.core import engine_args, model_ref
from rbee.core.engine_args import COMMAND, LLAMA_CPP, SYNTHETIC
from rbee.core.errors import InvalidField
from rbee.core.limits import MAX_SPEC_BYTES
from rbee.core.model_ref import Scheme
from rbee.core.own_spec import told_text
from rbee.core.worker import Restart, WorkerSpec


@dataclass(frozen=True, slots=True)
class Order:
    """A spawn as it was asked for; None: the default."""

    model_ref: str
    backend: str = "auto"
    device: int | None = None
    alias: str | None = None
    ctx_size: int | None = None
    slots: int | None = None
    engine: str | None = None
    engine_args: tuple[str, ...] = ()
    restart: Restart | None = None
    max_memory_bytes: int | None = None
    idle_timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the settings say for a field that an order leaves open. ``models``: orders by the name of their table;
    ``kinds``: what the engines of the settings are, by name (``launch.kind_of``)."""

    engine: str = "llama-cpp"
    ctx_size: int = 4096
    slots: int = 4
    restart: Restart = Restart.ON_FAILURE
    models: Mapping[str, Order] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)


def specify(order: Order, defaults: Defaults) -> WorkerSpec:
    """The worker that *order* means, without an id. Raises BadModelReference, then InvalidField."""
    configured = defaults.models.get(order.model_ref)
    if configured is not None:
        order = _with_settings(order, configured)
    ref = model_ref.parse(order.model_ref)
    engine = order.engine or ("synthetic" if ref.scheme is Scheme.SYNTHETIC else defaults.engine)
    if (engine == "synthetic") != (ref.scheme is Scheme.SYNTHETIC):
        only = "synthetic engine runs synthetic: references alone, and nothing else runs those"
        raise InvalidField(f"The engine '{engine}' cannot run '{ref}': the {only}.", field="engine")
    known_arguments = defaults.kinds.get(engine, engine if engine in (LLAMA_CPP, SYNTHETIC) else COMMAND)
    engine_args.check(known_arguments, order.engine_args)
    spec = WorkerSpec(
        worker_id="",
        model_ref=str(ref),
        backend=order.backend,
        device=order.device,
        engine=engine,
        engine_args=order.engine_args,
        alias=order.alias,
        ctx_size=order.ctx_size or defaults.ctx_size,
        slots=order.slots or (256 if known_arguments == COMMAND else defaults.slots),
        restart=order.restart or defaults.restart,
        max_memory_bytes=order.max_memory_bytes,
        idle_timeout=order.idle_timeout,
    )
    _check_size(spec)
    return spec


def _check_size(spec: WorkerSpec) -> None:
    size = len(told_text(spec).encode())
    if size > MAX_SPEC_BYTES:
        raise InvalidField(
            f"With these engine arguments the order takes {size} bytes to be told to its worker, and may take "
            f"{MAX_SPEC_BYTES}: quotes, backslashes and line breaks count twice.",
            field="engine_args",
        )


def _with_settings(order: Order, configured: Order) -> Order:
    """The order with what the settings file says of that model, where the order itself says nothing."""
    return Order(
        model_ref=configured.model_ref,
        backend=order.backend,
        device=order.device,
        alias=order.alias or configured.alias,
        ctx_size=order.ctx_size or configured.ctx_size,
        slots=order.slots or configured.slots,
        engine=order.engine or configured.engine,
        engine_args=order.engine_args or configured.engine_args,
        restart=order.restart or configured.restart,
        max_memory_bytes=order.max_memory_bytes,
        idle_timeout=order.idle_timeout if order.idle_timeout is not None else configured.idle_timeout,
    )
