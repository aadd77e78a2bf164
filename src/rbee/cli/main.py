"""`rbee`: the command line for people. Each command is a call or two of the hive's API."""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeVar
from urllib.parse import urlencode

import click

from rbee import __version__
from rbee.cli import chat, requests, resources, table, workers
from rbee.cli.client import Hive, Refused, worker_path
from rbee.config.sizes import parse_duration, parse_size

Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_URL: Final = "http://127.0.0.1:9200"


def hive_options(command: Command) -> Command:
    """The options that every command has. The token has no flag: a command line is open for everybody to read."""
    command = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)
    return click.option(
        "--url",
        "hive",
        envvar="RBEE_URL",
        default=DEFAULT_URL,
        show_default=True,
        callback=_hive,
        help="The hive's address.",
    )(command)


def _hive(context: click.Context, _: click.Parameter, url: str) -> Hive:
    if "://" not in url:
        url = f"http://{url}"
    if not url.startswith(("http://", "https://")):
        raise click.BadParameter("it must start with http:// or https://")
    return Hive(url.rstrip("/"), context.find_root().obj)


def _parsed(parse: Callable[[str], float]) -> Callable[[click.Context, click.Parameter, str | None], float | None]:
    def callback(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
        try:
            return None if text is None else parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return callback


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rbee")
@click.pass_context
def cli(context: click.Context) -> None:
    """Talk to a rbee hive, and to the models that its workers serve.

    RBEE_URL names the hive, RBEE_API_TOKEN is the key for it.
    """
    context.obj = os.environ.get("RBEE_API_TOKEN")


@cli.command()
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--system", help="What the model is told before the conversation.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="The longest answer.")
@click.option("--temperature", type=click.FloatRange(min=0), help="0 always picks the likeliest word.")
@hive_options
def run(
    hive: Hive,
    as_json: bool,
    model: str,
    prompt: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
) -> None:
    """Ask MODEL, loading it first where that is needed.

    Without PROMPT it is read from standard input; on a terminal a conversation begins.
    """
    chat.run(hive, model, prompt, chat.Sampling(max_tokens, temperature), system, as_json)


@cli.command()
@hive_options
def ps(hive: Hive, as_json: bool) -> None:
    """List the workers."""
    if as_json:
        _print_json(hive.get("/v1/workers"))
        return
    records = workers.listed(hive)
    if not records:
        click.echo("No workers. Load a model with: rbee run example", err=True)
        return
    table.show(workers.COLUMNS, [workers.row(record) for record in records])


def spawn_options(command: Command) -> Command:
    """What a spawn is asked for with; the same goes for the question whether it would fit."""
    for add in reversed(
        (
            click.argument("model"),
            click.argument("engine_args", nargs=-1, type=click.UNPROCESSED),
            click.option("--backend", help="cpu, cuda, rocm, vulkan or metal; the hive picks one unless it is given."),
            click.option("--device", type=click.IntRange(min=0), help="Number of the device."),
            click.option("--alias", help="A short name for it."),
            click.option("--ctx-size", type=click.IntRange(min=1), help="Tokens that one request may use."),
            click.option("--slots", type=click.IntRange(min=1), help="Requests at the same time."),
            click.option("--engine", help="llama-cpp, synthetic, or an engine from the hive's settings."),
            click.option("--restart", type=click.Choice(["on_failure", "always", "never"])),
            click.option(
                "--max-memory",
                "max_memory_bytes",
                callback=_parsed(parse_size),
                help="Such as 6GiB; above it the worker is ended.",
            ),
            click.option(
                "--idle-timeout",
                callback=_parsed(parse_duration),
                help="Such as 10m; unused for that long, it is stopped.",
            ),
        )
    ):
        command = add(command)
    return command


def _order(model: str, engine_args: tuple[str, ...], fields: dict[str, Any]) -> dict[str, Any]:
    """The body that asks for it: only what was given."""
    body = {"model_ref": model, "engine_args": list(engine_args) or None, **fields}
    return {name: value for name, value in body.items() if value is not None}


@cli.command()
@spawn_options
@click.option("--wait", is_flag=True, help="Return when it is ready.")
@hive_options
def spawn(hive: Hive, as_json: bool, wait: bool, model: str, engine_args: tuple[str, ...], **fields: Any) -> None:
    """Start a worker for MODEL. Arguments behind -- go to the engine."""
    try:
        worker = hive.call("POST", "/v1/workers/spawn", _order(model, engine_args, fields))
    except Refused as error:
        if error.status != 507 or "resources" not in error.details:
            raise
        error.show()
        if as_json:
            _print_json(error.details)
        else:
            resources.show_verdict(error.details, err=True)
        raise click.exceptions.Exit(1) from error
    if wait:
        for changed in workers.changes_until_ready(hive, worker["worker_id"]):
            chat.tell(changed)
            worker = changed
    if as_json:
        _print_json(worker)
    else:
        click.echo(f"{worker['worker_id']} {worker['state']} {worker['url']}")


@cli.command()
@spawn_options
@click.option(
    "--download", "download_bytes", callback=_parsed(parse_size), help="Size of MODEL, if it is not here yet."
)
@hive_options
def fits(hive: Hive, as_json: bool, model: str, engine_args: tuple[str, ...], **fields: Any) -> None:
    """Say whether a worker for MODEL would fit, with every number; nothing is started. Exits 1 if it would not."""
    verdict = hive.call("POST", "/v1/admission", _order(model, engine_args, fields))
    if as_json:
        _print_json(verdict)
    else:
        resources.show_verdict(verdict)
        click.echo(verdict["message"])
    if not verdict["fits"]:
        raise click.exceptions.Exit(1)


@cli.command("resources")
@hive_options
def show_resources(hive: Hive, as_json: bool) -> None:
    """Show what the machine has, what is left, and what each worker has a claim to."""
    found = hive.get("/v1/resources")
    if as_json:
        _print_json(found)
    else:
        resources.show_machine(found)


@cli.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="End requests in flight instead of waiting for them.")
@click.option("--wait", is_flag=True, help="Return when it is gone.")
@hive_options
def stop(hive: Hive, as_json: bool, name: str, force: bool, wait: bool) -> None:
    """Stop the workers that NAME means: an id, an alias, a model, or 'all'."""
    stopped = _ids(hive, name)
    for worker_id in stopped:
        _stop(hive, worker_id, force)
    for worker_id in stopped if wait else ():
        workers.wait_gone(hive, worker_id)
    if as_json:
        _print_json({"stopped": stopped})
    else:
        for worker_id in stopped:
            click.echo(f"{worker_id} {'stopped' if wait else 'stopping'}")


@cli.command()
@click.argument("name")
@click.option("--wait", is_flag=True, help="Return when it is ready again.")
@hive_options
def restart(hive: Hive, as_json: bool, name: str, wait: bool) -> None:
    """Restart the workers that NAME means (an id, an alias, a model, or 'all'), failed ones too."""
    restarted = _ids(hive, name)
    for worker_id in restarted:
        hive.call("POST", f"{worker_path(worker_id)}/restart")
    for worker_id in restarted if wait else ():
        for changed in workers.changes_until_ready(hive, worker_id):
            chat.tell(changed)
    if as_json:
        _print_json({"restarted": restarted})
    else:
        for worker_id in restarted:
            click.echo(f"{worker_id} {'restarted' if wait else 'restarting'}")


def _ids(hive: Hive, name: str) -> list[str]:
    """The ids of the workers that *name* means; none are fine for 'all' alone."""
    records = workers.listed(hive)
    found = records if name == "all" else workers.named(records, name)
    if not found and name != "all":
        names = ", ".join(record.get("alias") or record["worker_id"] for record in records) or "none"
        raise click.ClickException(f"There is no worker '{name}'. There are: {names}.")
    return [record["worker_id"] for record in found]


def _stop(hive: Hive, worker_id: str, force: bool) -> None:
    try:
        hive.call("DELETE", worker_path(worker_id) + ("?force=true" if force else ""))
    except Refused as error:
        # Somebody else stopped it since it was listed: what was wanted has happened.
        if error.status != 404:
            raise


@cli.command()
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on with each new line.")
@click.option(
    "-n", "--tail", type=click.IntRange(min=0), default=100, show_default=True, help="How many of the last lines."
)
@hive_options
def logs(hive: Hive, as_json: bool, name: str, follow: bool, tail: int) -> None:
    """Print what a worker (an id or an alias) has logged."""
    found = workers.named(workers.listed(hive), name)
    # An id that is not listed is asked for all the same: the log of a worker that is gone may still be there.
    worker_id = found[0]["worker_id"] if found else name
    path = f"{worker_path(worker_id)}/logs?tail={tail}"
    if follow:
        for line in hive.events("GET", f"{path}&follow=true"):
            click.echo(json.dumps({"worker_id": worker_id, "line": line}) if as_json else line)
    elif as_json:
        _print_json({"worker_id": worker_id, "lines": hive.text(path).splitlines()})
    else:
        click.echo(hive.text(path), nl=False)


@cli.command("requests")
@click.option("--model", help="Only those of one model, by any of its names.")
@click.option("--state", type=click.Choice(["waiting", "running", "finished"]), help="Only those in this state.")
@click.option("-n", "--limit", type=click.IntRange(min=0), default=20, show_default=True, help="How many at most.")
@hive_options
def show_requests(hive: Hive, as_json: bool, model: str | None, state: str | None, limit: int) -> None:
    """List inference requests: those under way first, then the last that have ended."""
    query = urlencode({"limit": limit, **{k: v for k, v in (("model", model), ("state", state)) if v is not None}})
    found = hive.get(f"/v1/requests?{query}")
    if as_json:
        _print_json(found)
    elif found["requests"]:
        table.show(requests.COLUMNS, [requests.row(request) for request in found["requests"]])
    else:
        click.echo("No requests.", err=True)


@cli.command()
@click.argument("request_id", metavar="ID")
@hive_options
def cancel(hive: Hive, as_json: bool, request_id: str) -> None:
    """End the inference request ID, as 'rbee requests' shows it."""
    cancelled = hive.call("DELETE", requests.path(request_id))
    if as_json:
        _print_json(cancelled)
    else:
        for request in cancelled["cancelled"]:
            click.echo(f"{request['request_id']} cancelled")


@cli.command()
@hive_options
def status(hive: Hive, as_json: bool) -> None:
    """Say how the hive is, and what needs attention. Exits 1 unless it is ready."""
    health = hive.get("/v1/health")
    unready = _why_unready(hive)
    records = workers.listed(hive)
    states = Counter(record["state"] for record in records)
    attention = [record for record in records if record["state"] in workers.TROUBLED]
    if as_json:
        report = {"url": hive.url, "health": health, "ready": unready is None, "message": unready}
        _print_json({**report, "workers": states, "attention": attention})
    else:
        click.echo(f"rbee-hive {health['version']} at {hive.url}: {health['status']}, {unready or 'ready'}")
        counted = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        click.echo(f"workers: {counted or 'none'}")
        for record in attention:
            click.echo(f"needs attention: {record['worker_id']} {record['state']}: {workers.reason(record)}")
    if unready is not None:
        raise click.exceptions.Exit(1)


def _why_unready(hive: Hive) -> str | None:
    try:
        hive.text("/readyz")
    except Refused as error:
        if error.status != 503:
            raise
        return error.message if error.code else "not ready"
    return None


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def main() -> NoReturn:
    """The entry point: errors become one line and an exit status, Ctrl+C ends as the shell expects."""
    try:
        code = cli.main(standalone_mode=False)
    except click.Abort:
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    sys.exit(code)
