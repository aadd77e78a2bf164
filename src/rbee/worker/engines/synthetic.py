"""An engine without a model, to try rbee, test and measure it: a real process that speaks as llama.cpp does."""

import json
import sys

from rbee.worker.engines.base import Launch, Plan
from rbee.worker.engines.dialect import LlamaDialect


class Synthetic(LlamaDialect):
    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.worker_id)
        self._plan = plan

    def launch(self, port: int, key: str) -> Launch:
        plan = self._plan
        config = {
            "host": plan.host,
            "port": port,
            "names": plan.names,
            "slots": plan.slots,
            "ctx_size": plan.ctx_size,
            "args": plan.engine_args,
        }
        environment = {
            "RBEE_ENGINE_CONFIG": json.dumps(config, ensure_ascii=False),
            "PYTHONPATH": rbee_root(),
            "PYTHONSAFEPATH": "1",
        }
        if key:
            environment["RBEE_ENGINE_KEY"] = key
        return Launch([sys.executable, "-m", "rbee.worker.engines.synthetic_server", plan.worker_id], environment)

    def lost_port(self, last_lines: list[str]) -> bool:
        return any("couldn't bind" in line for line in last_lines)


def rbee_root() -> str:
    """The directory that holds the package, so that the child finds it however the keeper was started."""
    return __file__.rpartition("/rbee/worker/engines/")[0]
