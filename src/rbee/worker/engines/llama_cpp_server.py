"""The process that holds the model. Imports xllamacpp and the standard library alone, since it may run in another
environment. Its configuration is JSON in RBEE_ENGINE_CONFIG, its key RBEE_ENGINE_KEY; SIGTERM ends it at once."""

import json
import os
import signal
import sys
from typing import Any


def main() -> None:
    config = json.loads(os.environ["RBEE_ENGINE_CONFIG"])
    try:
        import xllamacpp  # noqa: PLC0415 - so that its absence can be said in a sentence
    except ImportError as error:
        sys.exit(
            f"error: cannot import xllamacpp in {sys.executable}: {error}; install it there: pip install xllamacpp"
        )
    if config["gpus"]:
        _require_gpus(xllamacpp, config["gpus"])
    params = _parameters(xllamacpp, config)
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        sys.exit(f"the engine could not start: {error}")  # its own lines above say why
    _serve_until_killed(server)


def _require_gpus(xllamacpp: Any, needed: int) -> None:
    """A build without the backend would run on the processor and say nothing, and one that misses a device would put
    all layers on the others."""
    # By its name: as text, a member of an enumeration of whole numbers is but its number.
    kinds = [getattr(device["type"], "name", "") for device in xllamacpp.get_device_info()]
    found = sum("GPU" in kind for kind in kinds)
    if found == 0:
        sys.exit(
            "error: the xllamacpp of this Python sees no GPU: it was built without one, or the driver fails. Install a "
            "build for the GPU and name its Python ([engine.NAME] python, or --engine-python; see docs/install.md), or "
            "use the backend cpu"
        )
    if found < needed:
        sys.exit(f"error: the model was placed on {needed} GPUs, and the engine sees {found}; is one lost?")


def _parameters(xllamacpp: Any, config: dict[str, Any]) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = config["model"]
    params.hostnames = [config["host"]]
    params.port = config["port"]
    params.model_alias = set(config["names"])
    key = os.environ.get("RBEE_ENGINE_KEY", "")
    params.api_keys = [key] if key else []
    params.ui = False
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.fit_params = False  # it may shrink the context or move layers to make a model fit
    if config["split"]:
        params.tensor_split = [*config["split"], *params.tensor_split[len(config["split"]) :]]
    for name, value in config["params"].items():
        setattr(params, name, value)
    _apply_arguments(xllamacpp, params, config["args"])
    return params


def _apply_arguments(xllamacpp: Any, params: Any, args: dict[str, Any]) -> None:
    flash, pooling, load = xllamacpp.llama_flash_attn_type, xllamacpp.llama_pooling_type, xllamacpp.llama_load_mode
    for argument, parameter in (("--cache-type-k", "cache_type_k"), ("--cache-type-v", "cache_type_v")):
        if argument in args:
            setattr(params, parameter, getattr(xllamacpp.ggml_type, f"GGML_TYPE_{args[argument].upper()}"))
    if "--flash-attn" in args:
        words = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}
        params.flash_attn_type = getattr(flash, f"LLAMA_FLASH_ATTN_TYPE_{words[args['--flash-attn']]}")
    params.cpuparams.n_threads = args.get("--threads", params.cpuparams.n_threads)
    params.cpuparams_batch.n_threads = args.get("--threads-batch", params.cpuparams.n_threads)
    if "--chat-template" in args:
        params.chat_template = args["--chat-template"]
    if "--embedding" in args or "--reranking" in args:
        params.embedding = True
    if "--pooling" in args or "--reranking" in args:
        name = args.get("--pooling", "rank").upper()
        params.pooling_type = getattr(pooling, f"LLAMA_POOLING_TYPE_{name}")
    if "--no-mmap" in args:
        params.load_mode = load.LLAMA_LOAD_MODE_MLOCK if "--mlock" in args else load.LLAMA_LOAD_MODE_NONE
    elif "--mlock" in args:
        params.load_mode = load.LLAMA_LOAD_MODE_MMAP_MLOCK


def _serve_until_killed(server: Any) -> None:
    """The server runs in threads of its own. A clean end of the interpreter would wait for its requests (33 s
    measured), so the only way out is a signal with its default action."""
    while server is not None:
        signal.pause()


if __name__ == "__main__":
    main()
