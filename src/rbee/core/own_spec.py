"""What a worker is told of itself."""

import json

from rbee.core.worker import WorkerSpec


def told(spec: WorkerSpec) -> dict[str, object]:
    """What a worker cannot know of itself, and tells a hive that has lost its own record of it."""
    return {
        "backend": spec.backend,
        "device": spec.device,
        "engine": spec.engine,
        "engine_args": spec.engine_args,
        "ctx_size": spec.ctx_size,
        "restart": spec.restart,
        "max_memory_bytes": spec.max_memory_bytes,
        "idle_timeout": spec.idle_timeout,
    }


def told_text(spec: WorkerSpec) -> str:
    """RBEE_WORKER_SPEC: JSON with the fewest escapes, for it has room for MAX_SPEC_BYTES."""
    return json.dumps(told(spec), ensure_ascii=False, separators=(",", ":"))
