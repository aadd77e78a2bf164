"""rbee-hive: the daemon's command line, and what comes before its loop: settings, lock, port, TLS."""

import errno
import os
import resource
import socket
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import anyio
import click
import structlog

from rbee import __version__
from rbee.config import show
from rbee.config.sections import is_loopback
from rbee.config.settings import Loaded, Settings, load
from rbee.core import auth
from rbee.core.addresses import base_url
from rbee.core.errors import PortInUse, SettingsError, StartupError
from rbee.daemon import Daemon, FrontDoor, without_effect
from rbee.nodes.processes import holder_of_port
from rbee.observability import logging
from rbee.storage.lock import DirectoryLock

log = structlog.get_logger(__name__)

BACKLOG: Final = 4096
"""Connections that the kernel holds for us while the loop is busy; it cuts this to net.core.somaxconn."""
DESCRIPTORS: Final = 1_048_576
DEFAULT_FILE: Final = Path("rbee-hive.toml")
_FLAGS: Final = {
    "host": "server.host",
    "port": "server.port",
    "state_dir": "server.state_dir",
    "log_format": "log.format",
    "log_level": "log.level",
}


class Assignment(click.ParamType[tuple[str, str]]):
    """``section.key=value``."""

    name = "section.key=value"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if not equals or "." not in key:
            self.fail("write section.key=value, such as limits.min_free_memory=4GiB", param, ctx)
        return key, text


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rbee-hive")
def main() -> None:
    """The daemon that admits, spawns, watches and stops LLM workers."""


_config = click.option(
    "--config",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Settings file; ./rbee-hive.toml is taken when it is there.",
)
_set = click.option("--set", "assignments", type=Assignment(), multiple=True, help="Any setting, by its key.")


@main.command()
@_config
@click.option("--host", help="Address to listen on.")
@click.option("--port", help="Port to listen on; 0 takes any free one.")
@click.option("--state-dir", help="Where the database, the logs and the lock are.")
@click.option("--log-format", help="console or json.")
@click.option("--log-level", help="debug, info, warning or error.")
@_set
def daemon(file: Path | None, assignments: tuple[tuple[str, str], ...], **flags: str | None) -> None:
    """Run in the foreground until SIGTERM or Ctrl+C."""
    environ = dict(os.environ)
    try:
        loaded = _load(file, assignments, flags, environ)
        sys.exit(_run(loaded, environ))
    except StartupError as error:
        click.echo(f"rbee-hive: {error.message}", err=True)
        sys.exit(error.exit_code)


@main.group()
def config() -> None:
    """See the settings."""


@config.command("show")
@_config
@_set
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a settings file.")
def config_show(file: Path | None, assignments: tuple[tuple[str, str], ...], as_json: bool) -> None:
    """Print each setting and where it came from, secrets masked."""
    try:
        loaded = _load(file, assignments, {}, dict(os.environ))
    except StartupError as error:
        click.echo(f"rbee-hive: {error.message}", err=True)
        sys.exit(error.exit_code)
    click.echo(show.as_json(loaded) if as_json else show.as_text(loaded), nl=False)


def _load(
    file: Path | None,
    assignments: tuple[tuple[str, str], ...],
    flags: Mapping[str, str | None],
    environ: Mapping[str, str],
) -> Loaded:
    overrides = dict(assignments)
    overrides.update({_FLAGS[name]: value for name, value in flags.items() if value is not None})
    if file is None and DEFAULT_FILE.is_file():
        file = DEFAULT_FILE
    return load(overrides, environ, file)


def _run(loaded: Loaded, environ: Mapping[str, str]) -> int:
    settings = loaded.settings
    token = settings.auth.api_token.get_secret_value() if settings.auth.api_token else None
    logging.configure(settings.log.format, settings.log.level, secrets=[token] if token else [])
    auth.check_bind(
        settings.server.host,
        is_loopback=is_loopback(settings.server.host),
        tokens=[token] if token else [],
        keys_required=bool(token or settings.keys),
    )
    unread = sorted(without_effect(loaded.origins))
    if unread:
        log.warning("settings_without_effect_yet", keys=unread)
    _raise_descriptor_limit()
    lock = _lock(settings.server.state_dir)
    door = _open_door(settings)
    try:
        hive = Daemon(settings, environ, door)
        left = anyio.run(hive.run, backend="asyncio", backend_options={"use_uvloop": True})
    except OSError as error:
        raise StartupError(f"The state in {settings.server.state_dir} cannot be used: {error}") from error
    finally:
        door.listener.close()
        lock.release()
    return 1 if left else 0


def _lock(state_dir: Path) -> DirectoryLock:
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(state_dir)
        return DirectoryLock(state_dir / "lock")
    except OSError as error:
        raise StartupError(f"The state directory {state_dir} cannot be used: {error.strerror}.") from error


def _check_private(state_dir: Path) -> None:
    """The control socket, the logs and the database are in it: nobody else has any business there.

    Only an empty directory is closed for others by us: one that holds other things is somebody's, /tmp perhaps.
    """
    if not state_dir.stat().st_mode & 0o077:
        return
    if any(state_dir.iterdir()):
        raise SettingsError(
            f"Others can enter the state directory {state_dir}, and it is not empty. Run: chmod 700 {state_dir}, or "
            "give a directory of its own with --state-dir."
        )
    state_dir.chmod(0o700)


def _raise_descriptor_limit() -> None:
    """Clients, requests and workers take descriptors; the usual soft limit, 1024, is for programs that use select."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _open_door(settings: Settings) -> FrontDoor:
    server = settings.server
    tls = _tls(settings)
    listener = _listen(server.host, server.port)
    url = base_url(server.host, listener.getsockname()[1], "https" if tls else "http")
    return FrontDoor(listener, url, tls)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise SettingsError(f"server.host = {host}: {error.strerror}.") from error
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno != errno.EADDRINUSE:
            raise SettingsError(f"server.host = {host}, server.port = {port}: {error.strerror}.") from error
        raise PortInUse(
            f"{host}:{port} cannot be bound ({error.strerror}): {holder_of_port(port)} listens there. Stop that, or "
            f"choose another port: --port {port + 1}"
        ) from error
    listener.setblocking(False)
    return listener


def _tls(settings: Settings) -> ssl.SSLContext | None:
    certificate, key = settings.server.tls_cert, settings.server.tls_key
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:
        raise SettingsError(f"server.tls_cert and server.tls_key cannot be loaded: {error}") from error
    return context


if __name__ == "__main__":
    main()
