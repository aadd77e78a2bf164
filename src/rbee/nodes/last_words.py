"""Reads what a keeper leaves about its end: the only word there is on a process that is not our child."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_MAX_BYTES: Final = 2**20


def read(path: Path, incarnation: int) -> Mapping[str, object] | None:
    """The fields of an exit file; None where there is none, or it is of another life. Blocking."""
    try:
        with path.open("rb") as file:
            word = json.loads(file.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(word, dict) or word.get("incarnation") != incarnation:
        return None
    return word
