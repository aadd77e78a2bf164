"""A verdict, and what the machine has, as tables."""

from typing import Any, Final

import click

from rbee.cli import table
from rbee.cli.workers import human_size, short

Fields = dict[str, Any]

VERDICT_COLUMNS: Final = ("RESOURCE", "NEED", "FREE", "RESERVED", "MARGIN", "LEFT", "FITS")
MACHINE_COLUMNS: Final = ("RESOURCE", "TOTAL", "FREE", "RESERVED", "MARGIN", "LEFT")
WORKER_COLUMNS: Final = ("WORKER", "MODEL", "STATE", "ON", "CLAIMED", "RESERVED", "MEASURED")


def show_verdict(verdict: Fields, err: bool = False) -> None:
    """One line a resource; on standard error for *err*."""
    table.show(VERDICT_COLUMNS, [_check_row(check) for check in verdict["resources"]], err=err)


def show_machine(resources: Fields) -> None:
    """What there is, then what each worker has of it, then what engines can use."""
    table.show(MACHINE_COLUMNS, machine_rows(resources))
    if resources["workers"]:
        click.echo()
        table.show(WORKER_COLUMNS, [_worker_row(worker) for worker in resources["workers"]])
    click.echo()
    for engine in resources["engines"]:
        click.echo(f"engine {engine['engine']}: {_usable(engine)}")


def machine_rows(resources: Fields) -> list[tuple[str, ...]]:
    memory, disks = resources["memory"], resources["disks"]
    rows = [_machine_row("memory", memory)]
    if memory["group_limit_bytes"] is not None:
        group = (memory["group_limit_bytes"], memory["group_left_bytes"])
        rows.append(("memory of its cgroup", *map(human_size, group), "-", "-", "-"))
    rows += [_machine_row(_device(device), device) for device in resources["devices"]]
    rows += [_machine_row(f"disk {disks[name]['path']} ({name})", disks[name]) for name in ("models", "state")]
    return rows


def _machine_row(name: str, resource: Fields) -> tuple[str, ...]:
    sizes = ("total_bytes", "free_bytes", "reserved_bytes", "margin_bytes", "left_bytes")
    return (name, *(human_size(resource.get(size)) for size in sizes))


def _device(device: Fields) -> str:
    name = f"{device['backend']}:{device['index']} {device['name']}"
    # Its free memory is of when the engine was asked, so what other programs took since is not in it.
    return name if device["is_live"] else f"{name} (as when it was idle)"


def _check_row(check: Fields) -> tuple[str, ...]:
    prefix = {"ram": "memory", "disk": "disk "}.get(check["resource"], "")
    sizes = ("need_bytes", "free_bytes", "reserved_bytes", "margin_bytes", "left_bytes")
    return (
        f"{prefix}{check['where']}",
        *(human_size(check[size]) for size in sizes),
        "yes" if check["fits"] else _why_not(check),
    )


def _why_not(check: Fields) -> str:
    limit = check["limit_bytes"]
    if limit is not None and check["need_bytes"] > limit:
        return f"no, {check['setting']} allows {human_size(limit)}"
    return f"no, {human_size(check['short_bytes'])} missing" if check["short_bytes"] else "no"


def _worker_row(worker: Fields) -> tuple[str, ...]:
    measured = worker["measured"]
    return (
        worker["worker_id"],
        short(worker["model_ref"]),
        worker["state"],
        f"{worker['backend']} {','.join(map(str, worker['devices']))}".rstrip(),
        _amount(worker["claimed"]["ram_bytes"], worker["claimed"]["vram_bytes"]),
        _amount(worker["reserved"]["ram_bytes"], worker["reserved"]["vram_bytes"]),
        _amount(measured["rss_bytes"], measured["vram_bytes"] or []),
    )


def _amount(ram_bytes: int | None, vram_bytes: list[int]) -> str:
    ram = human_size(ram_bytes)
    return f"{ram} + {human_size(sum(vram_bytes))} on devices" if vram_bytes else ram


def _usable(engine: Fields) -> str:
    if engine["problem"]:
        return str(engine["problem"])
    return ", ".join(["cpu", *(f"{one['backend']}:{one['index']} {one['name']}" for one in engine["devices"])])
