"""What `rbee-hive config show` prints: each value and where it came from. The text is itself a settings file."""

import json
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from rbee.config.layers import NAMED, dotted
from rbee.config.settings import SCHEMA, Loaded, Settings, paths
from rbee.config.sizes import format_duration, format_size, parse_duration, parse_size

MASK: Final = "********"


def as_text(loaded: Loaded) -> str:
    """TOML with the origin of each value behind it. What is not set, and every secret, stands in a comment."""
    lines: list[str] = []
    header: tuple[str, ...] = ()
    for path in paths(loaded.settings):
        if path[:-1] != header:
            header = path[:-1]
            lines += ["", f"[{dotted(header)}]"]
        value = _value(loaded.settings, path)
        origin = loaded.origins[dotted(path)]
        if value is None:
            lines.append(f"# {path[-1]} is not set")
        elif isinstance(value, SecretStr):
            lines.append(f"# {path[-1]} = {MASK}  # {origin}")
        else:
            lines.append(f"{f'{path[-1]} = {_toml(path, value)}':<40}  # {origin}")
    return "\n".join(lines[1:]) + "\n"


def as_json(loaded: Loaded) -> str:
    """One object: dotted key -> {"value", "origin"}; sizes in bytes, durations in seconds, secrets masked."""
    rows = {
        dotted(path): {"value": _plain(_value(loaded.settings, path)), "origin": loaded.origins[dotted(path)]}
        for path in paths(loaded.settings)
    }
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def _value(settings: Settings, path: tuple[str, ...]) -> Any:
    section = getattr(settings, path[0])
    return getattr(section[path[1]] if path[0] in NAMED else section, path[-1])


def _plain(value: Any) -> Any:
    match value:
        case SecretStr():
            return MASK
        case Path():
            return str(value)
        case tuple():
            return [_plain(item) for item in value]
        case _:
            return value


def _toml(path: tuple[str, ...], value: Any) -> str:
    field = SCHEMA.sections[path[0]][path[-1]]
    if _is_written_by(field, parse_size):
        return json.dumps(format_size(value))
    if _is_written_by(field, parse_duration):
        return json.dumps(format_duration(value))
    return json.dumps(_plain(value), ensure_ascii=False)


def _is_written_by(field: FieldInfo, parser: object) -> bool:
    """Whether *parser* reads this field: as its own validator, or inside an optional type."""
    inner = [item for kind in get_args(field.annotation) for item in getattr(kind, "__metadata__", ())]
    return any(getattr(item, "func", None) is parser for item in [*field.metadata, *inner])
