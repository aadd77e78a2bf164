"""The keeper's log: one plain line an event on standard error, ``<time> <level> <event> key=value``."""

import contextlib
import json
import os
import re
import time
from typing import Final

LINE: Final = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (?:info|warning|error) ")
"""How every line of ours starts, so that what the engine wrote into the same file can be told apart."""

_STDERR: Final = 2
_PLAIN: Final = re.compile(r"[\w.,:/@+\[\]-]+")


def timestamp(wall_time: float | None = None) -> str:
    """RFC 3339 in UTC with milliseconds; *wall_time* is seconds since 1970, now by default."""
    at = time.time() if wall_time is None else wall_time
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1000):03d}Z"


def info(event: str, **fields: object) -> None:
    _write("info", event, fields)


def warning(event: str, **fields: object) -> None:
    _write("warning", event, fields)


def error(event: str, **fields: object) -> None:
    _write("error", event, fields)


def _write(level: str, event: str, fields: dict[str, object]) -> None:
    words = [timestamp(), level, event, *(f"{name}={_value(value)}" for name, value in fields.items())]
    line = (" ".join(words) + "\n").encode(errors="replace")
    with contextlib.suppress(OSError):  # a closed terminal or a full disk must not end a worker that serves
        os.write(_STDERR, line)  # one write a line, so that threads cannot mix theirs


def _value(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
