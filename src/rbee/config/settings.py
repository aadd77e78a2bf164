"""The frozen Settings, and load(): the only reader of the environment in the whole program.

Flags > environment (RBEE_HIVE__SECTION__KEY) > settings file > defaults.
"""

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from rbee.config.layers import NAMED, Schema, Value, dotted, from_environment, from_file, from_flags
from rbee.config.sections import (
    Auth,
    Engine,
    Gateway,
    Heartbeat,
    Key,
    Lifecycle,
    Limits,
    Log,
    Model,
    Models,
    Monitor,
    Restart,
    Section,
    Server,
    Workers,
    is_loopback,
)
from rbee.core.auth import digest
from rbee.core.errors import SettingsError

DEFAULT: Final = "default"


class Settings(Section):
    """Everything that can be set. A component gets the section that it needs, never the whole."""

    server: Server = Field(default_factory=Server)
    auth: Auth = Field(default_factory=Auth)
    keys: dict[str, Key] = Field(default_factory=dict)
    heartbeat: Heartbeat = Field(default_factory=Heartbeat)
    monitor: Monitor = Field(default_factory=Monitor)
    lifecycle: Lifecycle = Field(default_factory=Lifecycle)
    restart: Restart = Field(default_factory=Restart)
    limits: Limits = Field(default_factory=Limits)
    workers: Workers = Field(default_factory=Workers)
    engine: dict[str, Engine] = Field(default_factory=dict)
    model: dict[str, Model] = Field(default_factory=dict)
    gateway: Gateway = Field(default_factory=Gateway)
    models: Models = Field(default_factory=Models)
    log: Log = Field(default_factory=Log)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, and for each dotted key who set it: ``default``, ``file …``, ``environment …`` or ``flag …``."""

    settings: Settings
    origins: Mapping[str, str]


SCHEMA: Final = Schema(Settings)


def load(argv_overrides: Mapping[str, str], environ: Mapping[str, str], file: Path | None) -> Loaded:
    """The settings that hold. *argv_overrides* maps dotted keys to the text of their flags.

    Reads nothing but *file* and, where it is set, ``auth.api_token_file``. Raises SettingsError, whose message
    names the key and where it came from.
    """
    values: dict[tuple[str, ...], Value] = {}
    layers: list[Iterable[Value]] = [
        from_file(SCHEMA, file) if file is not None else (),
        from_environment(SCHEMA, environ),
        from_flags(SCHEMA, argv_overrides),
    ]
    for layer in layers:
        values.update((value.path, value) for value in layer)
    _read_token_file(values)
    try:
        settings = Settings.model_validate(_tables(values))
    except ValidationError as error:
        raise _explained(error.errors(include_url=False), values) from error
    _check_keys(settings)
    origins = {dotted(path): DEFAULT for path in paths(settings)}
    origins |= {value.key: value.origin for value in values.values()}
    return Loaded(settings, origins)


def _check_keys(settings: Settings) -> None:
    """One key with two names would have the rights, and the limits, of whichever comes last."""
    names: dict[str, str] = {}
    if settings.auth.api_token is not None:
        names[digest(settings.auth.api_token.get_secret_value()).hex()] = "auth.api_token"
    for name, key in settings.keys.items():
        other = names.setdefault(key.sha256, f"keys.{name}.sha256")
        if other != f"keys.{name}.sha256":
            raise SettingsError(f"{other} and keys.{name}.sha256 are the same key; give each name a key of its own")


def paths(settings: Settings) -> Iterable[tuple[str, ...]]:
    """The path of every setting that there is, in the order of the sections."""
    for name, fields in SCHEMA.sections.items():
        for prefix in [(name, inner) for inner in getattr(settings, name)] if name in NAMED else [(name,)]:
            for key in fields:
                yield (*prefix, key)


def _tables(values: Mapping[tuple[str, ...], Value]) -> dict[str, Any]:
    """Nested tables for the models, with those defaults that depend on another setting."""
    root: dict[str, Any] = {}
    for path, value in values.items():
        table = root
        for part in path[:-1]:
            table = table.setdefault(part, {})
        table[path[-1]] = value.value
    server = root.get("server", {})
    if isinstance(state_dir := server.get("state_dir"), str):
        root.setdefault("models", {}).setdefault("directory", str(Path(state_dir) / "models"))
    if isinstance(host := server.get("host"), str):
        root.setdefault("workers", {}).setdefault("allow_external", is_loopback(host))
    for name, table in root.get("model", {}).items():
        table.setdefault("ref", name)
    return root


def _read_token_file(values: dict[tuple[str, ...], Value]) -> None:
    """Replace the name of a token file by the token in it; the file's name stays a setting too."""
    given = values.get(("auth", "api_token_file"))
    if given is None or not isinstance(given.value, str) or not given.value:
        return
    if (other := values.get(("auth", "api_token"))) and other.value:
        raise SettingsError(
            f"auth.api_token ({other.origin}) and auth.api_token_file ({given.origin}) are both set; keep one of them"
        )
    path = Path(given.value).expanduser()
    values["auth", "api_token"] = Value(("auth", "api_token"), _private_line(path, given), f"file {path}")


def _private_line(path: Path, given: Value) -> str:
    about = f"{given.key} = {path} ({given.origin})"
    try:
        with path.open(encoding="utf-8") as stream:
            # The open file is asked, not the name, which could point elsewhere by then.
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            if mode & 0o077:
                raise SettingsError(f"{about}: others can read it (mode {mode:04o}); run: chmod 600 {path}")
            token = stream.read().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise SettingsError(f"{about}: it cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{about}: it is not UTF-8 text") from error
    if not token:
        raise SettingsError(f"{about}: the file is empty; put the token into it")
    return token


def _explained(errors: list[ErrorDetails], values: Mapping[tuple[str, ...], Value]) -> SettingsError:
    """One error with a line a wrong setting. What was given is repeated, but for secrets."""
    lines = []
    for error in errors:
        if error["type"] == "default_factory_not_called":
            continue  # it only follows from the error before it
        location = tuple(str(part) for part in error["loc"])
        path = next((location[:size] for size in (2, 3) if location[:size] in values), location[:3])
        value = values.get(path)
        shown = f" = {value.value!r:.80}" if value and path != ("auth", "api_token") else ""
        if error["type"] == "missing":
            lines.append(f"{dotted(path)} is not set, and has no default")
            continue
        reason = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
        origin = f" ({value.origin if value else DEFAULT})" if len(path) > 1 else ""
        lines.append(f"{dotted(path)}{shown}{origin}: {reason}")
    return SettingsError("\n".join(lines))
