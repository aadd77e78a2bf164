"""The default engine: llama.cpp's own HTTP server inside xllamacpp."""

import json
from pathlib import Path
from typing import Final

from rbee.core import llama_cpp
from rbee.core.environment import NO_DEVICES
from rbee.worker.engines.base import Launch, Plan
from rbee.worker.engines.dialect import LlamaDialect

_SERVER: Final = str(Path(__file__).with_name("llama_cpp_server.py"))


class LlamaCpp(LlamaDialect):
    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.worker_id)
        self._plan = plan

    def launch(self, port: int, key: str) -> Launch:
        """Run by its file, so that another environment's Python needs no rbee; the id on its line is for people."""
        plan = self._plan
        config = {
            "model": plan.model,
            "host": plan.host,
            "port": port,
            "names": plan.names,
            "gpus": plan.device_count if plan.backend != "cpu" and plan.engine_args.get("--n-gpu-layers") != 0 else 0,
            "split": plan.split,
            "params": parameters(plan),
            "args": plan.engine_args,
        }
        environment = {"RBEE_ENGINE_CONFIG": json.dumps(config, ensure_ascii=False), "PYTHONSAFEPATH": "1"}
        if plan.backend == "cpu":
            environment |= NO_DEVICES
        if key:
            environment["RBEE_ENGINE_KEY"] = key
        return Launch([plan.python, _SERVER, plan.worker_id], environment)

    def lost_port(self, last_lines: list[str]) -> bool:
        return any("exiting due to HTTP server error" in line for line in last_lines)


def parameters(plan: Plan) -> dict[str, int]:
    """Whole-number parameters of llama.cpp. ``n_ctx`` is shared by its slots, ``ctx_size`` is for one request.

    Whatever takes memory is set here and counted by core/sizing.py, nothing of it left to llama.cpp's defaults.
    """
    batch = llama_cpp.batch_of(plan.ctx_size, plan.engine_args)
    layers = plan.engine_args.get("--n-gpu-layers", 0 if plan.backend == "cpu" else llama_cpp.ALL_LAYERS)
    return {
        "n_parallel": plan.slots,
        "n_ctx": plan.ctx_size * plan.slots,
        "n_batch": batch,
        "n_ubatch": batch,
        "n_gpu_layers": int(layers),
        "cache_ram_mib": llama_cpp.prompt_cache_mib(plan.prompt_cache_bytes),
        "n_ctx_checkpoints": llama_cpp.CHECKPOINTS,
        "kv_unified": False,
        "swa_full": False,
    }
