"""Inference requests as the command line shows them: a line of a table each."""

from typing import Any, Final
from urllib.parse import quote

from rbee.cli.workers import short

Record = dict[str, Any]

COLUMNS: Final = ("ID", "MODEL", "WORKER", "STATE", "AGE", "QUEUE", "FIRST", "TOKENS", "TOK/S", "KEY")


def path(request_id: str) -> str:
    return f"/v1/requests/{quote(request_id, safe='')}"


def row(request: Record) -> tuple[str, ...]:
    """One line of ``rbee requests``; TOKENS are the prompt's and the generated ones."""
    speed = request.get("tokens_per_second")
    return (
        request["request_id"],
        short(request["model"]),
        request.get("worker_id") or "-",
        _state(request),
        human_seconds(request.get("duration_seconds")),
        human_seconds(request.get("queue_seconds")),
        human_seconds(request.get("first_byte_seconds")),
        _tokens(request),
        "-" if speed is None else f"{speed:.1f}",
        request.get("key") or "-",
    )


def _state(request: Record) -> str:
    """What it does; of one that has ended, how: why the engine stopped, or which error its client got."""
    if request["state"] != "finished":
        return str(request["state"])
    if request.get("cancelled"):
        return "cancelled"
    status = request.get("status")
    if status == 499:
        return "client gone"
    if status is not None and status >= 400:
        return f"error {status}"
    if request.get("error"):
        # A stream has its 200 before it fails.
        return f"error {request['error']}"
    return request.get("finish_reason") or "done"


def _tokens(request: Record) -> str:
    prompt, generated = request.get("prompt_tokens"), request.get("generated_tokens")
    if prompt is None and generated is None:
        return "-"
    return f"{'?' if prompt is None else prompt}+{'?' if generated is None else generated}"


def human_seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    return f"{seconds:.1f}s" if seconds < 120 else f"{seconds / 60:.0f}m"
