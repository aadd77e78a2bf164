"""Where values come from: flags, the environment, the settings file. Each becomes a list of (key, value, origin)."""

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Final, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rbee.config.sections import COMMAS, Engine, Key, Model
from rbee.core.errors import SettingsError

ENVIRONMENT_PREFIX: Final = "RBEE_HIVE__"
TOKEN_VARIABLE: Final = "RBEE_API_TOKEN"
NAMED: Final[Mapping[str, type[BaseModel]]] = {"keys": Key, "engine": Engine, "model": Model}
"""Sections that hold one table a name."""
FLAGS: Final[Mapping[str, str]] = {
    "server.host": "--host",
    "server.port": "--port",
    "server.state_dir": "--state-dir",
    "log.format": "--log-format",
    "log.level": "--log-level",
}
"""Settings with a flag of their own; every other one is given as ``--set key=value``."""

_BOOLEANS: Final = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


@dataclass(frozen=True, slots=True)
class Value:
    """One value somebody gave. ``path`` is (section, key), or (section, name, key) where tables have names."""

    path: tuple[str, ...]
    value: Any
    origin: str

    @property
    def key(self) -> str:
        return dotted(self.path)


class Schema:
    """Which settings there are."""

    def __init__(self, settings: type[BaseModel]) -> None:
        self.sections: dict[str, Mapping[str, FieldInfo]] = {}
        for name, field in settings.model_fields.items():
            section = NAMED.get(name) or field.annotation
            assert isinstance(section, type)
            assert issubclass(section, BaseModel)
            self.sections[name] = section.model_fields

    def field(self, path: tuple[str, ...], origin: str) -> FieldInfo:
        """The field at *path*; raises SettingsError, naming the nearest key, where there is none."""
        fields = self.sections.get(path[0], {})
        if len(path) == (3 if path[0] in NAMED else 2) and all(path) and path[-1] in fields:
            return fields[path[-1]]
        raise self.unknown(path, origin)

    def unknown(self, path: tuple[str, ...], origin: str) -> SettingsError:
        key = dotted(path)
        near = difflib.get_close_matches(key, self._known(path), n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}?" if near else f"The sections are {', '.join(self.sections)}."
        return SettingsError(f"{key} ({origin}) is not a setting. {hint}", key=key, origin=origin)

    def _known(self, path: tuple[str, ...]) -> Iterator[str]:
        name = path[1] if len(path) == 3 else "NAME"
        for section, fields in self.sections.items():
            yield section
            for key in fields:
                yield dotted((section, name, key) if section in NAMED else (section, key))


def dotted(path: tuple[str, ...]) -> str:
    """The key as one writes it: a name with other characters than a bare TOML key has is quoted."""
    return ".".join(part if _is_bare(part) else json.dumps(part, ensure_ascii=False) for part in path)


def _is_bare(part: str) -> bool:
    return bool(part) and part.isascii() and part.replace("_", "").replace("-", "").isalnum()


def from_file(schema: Schema, file: Path) -> Iterator[Value]:
    """The values of a TOML file. Raises SettingsError for one that is missing, not TOML or has unknown keys."""
    origin = f"file {file}"
    for name, table in _read_toml(file).items():
        if name not in schema.sections:
            raise schema.unknown((name,), origin)
        tables = (
            {(name, inner): value for inner, value in table.items()} if _is_named(name, table) else {(name,): table}
        )
        for prefix, keys in tables.items():
            if not isinstance(keys, dict):
                raise SettingsError(f"{dotted(prefix)} ({origin}) must be a table: [{dotted(prefix)}]")
            for key, value in keys.items():
                schema.field((*prefix, key), origin)
                yield Value((*prefix, key), value, origin)


def _is_named(name: str, table: Any) -> bool:
    return name in NAMED and isinstance(table, dict)


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError(f"The settings file {file} cannot be read: {reason}.") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"The settings file {file} is not TOML: {error}.") from error


def from_environment(schema: Schema, environ: Mapping[str, str]) -> Iterator[Value]:
    """The values of ``RBEE_HIVE__SECTION__KEY`` and ``RBEE_API_TOKEN``.

    A single underscore is no separator: Kubernetes puts ``RBEE_HIVE_PORT=tcp://…`` into every pod beside a
    Service named rbee-hive.
    """
    if token := environ.get(TOKEN_VARIABLE):
        yield Value(("auth", "api_token"), token, f"environment {TOKEN_VARIABLE}")
    for variable in sorted(environ):
        if variable.startswith(ENVIRONMENT_PREFIX):
            path = tuple(variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__"))
            origin = f"environment {variable}"
            yield Value(path, from_text(schema.field(path, origin), environ[variable]), origin)


def from_flags(schema: Schema, flags: Mapping[str, str]) -> Iterator[Value]:
    """The values of the command line, by dotted key."""
    for key, text in flags.items():
        path = _path_of(key)
        origin = f"flag {FLAGS.get(key, f'--set {key}')}"
        field = schema.field(path, origin)
        if path == ("auth", "api_token"):
            raise SettingsError(
                "auth.api_token may not be given on the command line, where every user of this machine can read it; "
                f"use {TOKEN_VARIABLE} or auth.api_token_file"
            )
        yield Value(path, from_text(field, text), origin)


def _path_of(key: str) -> tuple[str, ...]:
    """Names may hold dots (model."qwen2.5".slots), so only the first and the last part are cut off."""
    section, _, rest = key.partition(".")
    if section not in NAMED:
        return (section, rest) if rest else (section,)
    name, _, last = rest.rpartition(".")
    return section, name.strip('"'), last


def from_text(field: FieldInfo, text: str) -> Any:
    """What *text* from a variable or a flag, which have no types, stands for; text that fits nothing stays text."""
    kinds = [getattr(kind, "__origin__", kind) for kind in get_args(field.annotation) or (field.annotation,)]
    if not text and NoneType in kinds:
        return None
    if COMMAS in field.metadata:
        return _list(text)
    if bool in kinds:
        return _BOOLEANS.get(text.lower(), text)
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                continue
    return text


def _list(text: str) -> Any:
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text
    return [item.strip() for item in text.split(",") if item.strip()]
