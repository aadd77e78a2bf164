"""Entry point of ``llm-worker-rbee``: reads the command line, builds the engine's adapter and runs the keeper."""

import os
import sys
import traceback

from rbee.worker import exit_file, log, options
from rbee.worker.engines.base import Engine, Plan
from rbee.worker.engines.command import Command
from rbee.worker.engines.llama_cpp import LlamaCpp
from rbee.worker.engines.synthetic import Synthetic
from rbee.worker.events import Mailbox
from rbee.worker.exit_file import Ending
from rbee.worker.keeper import Keeper
from rbee.worker.options import Options

_ENGINES: dict[str, type[LlamaCpp] | type[Command] | type[Synthetic]] = {
    "llama-cpp": LlamaCpp,
    "command": Command,
    "synthetic": Synthetic,
}


def main() -> int:
    """Run one worker to its end; the exit status is 0 when it was told to end, 2 for a bad command line, else 1."""
    try:
        chosen = options.read(sys.argv[1:], os.environ)
    except options.BadOptions as bad:
        _leave_word(*options.where_to_leave_word(sys.argv[1:]), Ending("load_failed", bad.message, 2))
        return 2
    try:
        return Keeper(chosen, build_engine(chosen), os.environ, Mailbox()).run().exit_code
    except Exception:
        # The one place that catches all: a bug of ours must leave word too. The engine dies with this process.
        log.error("The keeper has failed", reason=traceback.format_exc(limit=-3))
        _leave_word(
            chosen.exit_file,
            chosen.incarnation,
            Ending("crashed", "the keeper itself failed; its log says why", 1),
        )
        return 1


def _leave_word(path: str | None, incarnation: int | None, ending: Ending) -> None:
    if path is None:
        return
    try:
        exit_file.write(path, incarnation, ending)
    except OSError as error:
        log.error("Cannot write the exit file", path=path, reason=error.strerror)


def build_engine(chosen: Options) -> Engine:
    names = dict.fromkeys((*((chosen.alias,) if chosen.alias else ()), chosen.model_ref, chosen.worker_id))
    plan = Plan(
        worker_id=chosen.worker_id,
        model=chosen.model,
        names=tuple(names),
        backend=chosen.backend,
        device_count=len(chosen.devices),
        split=chosen.tensor_split,
        host=chosen.host,
        slots=chosen.slots,
        ctx_size=chosen.ctx_size,
        prompt_cache_bytes=chosen.prompt_cache,
        engine_args=chosen.engine_args,
        python=chosen.engine_python,
        template=chosen.template,
        health_path=chosen.health_path,
    )
    return _ENGINES[chosen.engine](plan)
