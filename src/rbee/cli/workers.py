"""Workers as the command line speaks of them: found by id, alias or model; waited for; written as a line of a table."""

import time
from collections.abc import Iterator
from typing import Any, Final

import click

from rbee.cli.client import Hive, Refused, worker_path
from rbee.config.sizes import format_duration
from rbee.core.errors import BadModelReference
from rbee.core.model_ref import parse

Record = dict[str, Any]

READY: Final = frozenset({"idle", "busy"})
COMING: Final = frozenset({"starting", "loading", "backoff"})
TROUBLED: Final = frozenset({"backoff", "failed"})
POLL_INTERVAL: Final = 0.1
COLUMNS: Final = ("ID", "MODEL", "STATE", "PROCESSOR", "SLOTS", "MEMORY", "BEAT", "UNTIL")


def listed(hive: Hive) -> list[Record]:
    workers: list[Record] = hive.get("/v1/workers")["workers"]
    return workers


def named(workers: list[Record], name: str) -> list[Record]:
    """The workers that *name* means, in the order in which the hive looks: id, model reference, alias."""
    for key, wanted in (("worker_id", name), ("model_ref", canonical(name)), ("alias", name)):
        found = [worker for worker in workers if worker.get(key) == wanted]
        if found:
            return found
    return []


def canonical(name: str) -> str:
    """The reference that *name* spells; anything else stays what it is, and the hive will say what is wrong with it."""
    try:
        return str(parse(name))
    except BadModelReference:
        return name


def changes_until_ready(hive: Hive, worker_id: str) -> Iterator[Record]:
    """The worker's record at each change of its state or message, until it is ready.

    Raises ClickException, with the worker's own message, when it failed, and Refused (404) when it is gone.
    """
    seen: tuple[Any, Any] | None = None
    while True:
        worker: Record = hive.get(worker_path(worker_id))
        state = worker["state"]
        if state == "failed":
            raise click.ClickException(f"{worker_id} failed: {reason(worker)}")
        if (state, worker.get("message")) != seen:
            seen = (state, worker.get("message"))
            yield worker
        if state in READY:
            return
        time.sleep(POLL_INTERVAL)


def wait_gone(hive: Hive, worker_id: str) -> None:
    """Return when the hive does not know it any more."""
    while True:
        try:
            hive.get(worker_path(worker_id))
        except Refused as error:
            if error.status == 404:
                return
            raise
        time.sleep(POLL_INTERVAL)


def reason(worker: Record) -> str:
    return worker.get("message") or f"no reason was given; see: rbee logs {worker['worker_id']}"


def row(worker: Record) -> tuple[str, ...]:
    """One line of ``rbee ps``; the columns are those that users of other tools know."""
    return (
        worker["worker_id"],
        worker.get("alias") or short(worker["model_ref"]),
        worker["state"] + (" (external)" if worker.get("external") else ""),
        processor(worker),
        f"{worker.get('in_flight') or 0}/{worker.get('slots') or '?'}",
        human_size((worker.get("memory") or {}).get("rss_bytes")),
        human_age(worker.get("last_heartbeat_age_seconds")),
        _until(worker) if worker["state"] in READY else worker.get("message") or "",
    )


def processor(worker: Record) -> str:
    """What computes: the CPU, GPUs by their numbers, or both where an order keeps layers in host memory."""
    backend, devices = worker.get("backend") or "?", worker.get("devices") or []
    if backend == "cpu":
        return "100% CPU"
    if not devices:
        return backend
    numbers = ",".join(str(device) for device in devices)
    claim = worker.get("claim")
    # The embeddings stay in host memory always; they alone are no reason to speak of a split.
    if claim is None or "--n-gpu-layers" not in worker.get("engine_args", ()):
        return f"100% GPU {numbers}"
    host, video = claim["ram_weights_bytes"], sum(claim["vram_weights_bytes"])
    share = round(100 * host / max(1, host + video))
    return f"{share}%/{100 - share}% CPU/GPU {numbers}"


def _until(worker: Record) -> str:
    """How long a ready worker stays."""
    idle_timeout = worker.get("idle_timeout")
    return f"unused for {format_duration(idle_timeout)}" if idle_timeout else "forever"


def short(model_ref: str) -> str:
    try:
        return parse(model_ref).name
    except BadModelReference:
        return model_ref


def human_size(size_bytes: int | None) -> str:
    if size_bytes is None:
        return "-"
    size = size_bytes / 2**20
    return f"{size:.0f} MiB" if size < 1024 else f"{size / 1024:.1f} GiB"


def human_age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.0f}s ago" if seconds < 120 else f"{seconds / 60:.0f}m ago"
