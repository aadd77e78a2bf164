"""Leaves word of how a worker ended, for a hive that did not start it and so gets no exit status."""

import json
import os
from typing import NamedTuple

from rbee.worker.log import timestamp


class Ending(NamedTuple):
    """*reason* is stopped, crashed, orphaned, superseded or load_failed; *engine_status* is the engine's exit code,
    negative for a signal, None where it was still alive or never was."""

    reason: str
    message: str
    exit_code: int
    engine_status: int | None = None


def write(path: str, incarnation: int | None, ending: Ending) -> None:
    """Put *ending* at *path* as JSON, whole or not at all. Raises OSError."""
    record: dict[str, object] = {
        "incarnation": incarnation,
        "reason": ending.reason,
        "message": ending.message,
        "exit_code": ending.exit_code,
        "at": timestamp(),
    }
    if ending.engine_status is not None:
        name = "engine_signal" if ending.engine_status < 0 else "engine_exit_code"
        record[name] = abs(ending.engine_status)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
