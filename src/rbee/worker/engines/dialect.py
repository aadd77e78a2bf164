"""Reads the metrics page and the slots of servers that speak as llama.cpp, vLLM or SGLang do. Pure."""

from collections.abc import Iterable
from typing import Any, Final

from rbee.worker.engines.base import Probe, Telemetry

_NAMES: Final = {
    "slots_busy": ("llamacpp:requests_processing", "vllm:num_requests_running", "sglang:num_running_reqs"),
    "requests_waiting": ("llamacpp:requests_deferred", "vllm:num_requests_waiting", "sglang:num_queue_reqs"),
    "requests_total": ("synthetic:requests_total", "vllm:request_success_total", "sglang:num_requests_total"),
    "prompt_tokens_total": ("llamacpp:prompt_tokens_total", "vllm:prompt_tokens_total", "sglang:prompt_tokens_total"),
    "generated_tokens_total": (
        "llamacpp:tokens_predicted_total",
        "vllm:generation_tokens_total",
        "sglang:generation_tokens_total",
    ),
    "tokens_per_second": ("llamacpp:predicted_tokens_seconds", "sglang:gen_throughput"),
}
_MEANING: Final = {name: meaning for meaning, names in _NAMES.items() for name in names}


def read_metrics(text: str) -> dict[str, float]:
    """The known values of a Prometheus text page by our names; label sets of one family are added up."""
    values: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        series, _, rest = line.partition("} ") if "{" in line else line.partition(" ")
        meaning = _MEANING.get(series.partition("{")[0])
        words = rest.split()
        if meaning is None or not words:
            continue
        try:
            value = float(words[0])
        except ValueError:
            continue
        if 0 <= value < float("inf"):
            values[meaning] = values.get(meaning, 0.0) + value
    return values


def metrics_of(probe: Probe) -> dict[str, float]:
    """The values of the engine's /metrics; empty where it has none or did not answer."""
    answer = probe.get("/metrics")
    return read_metrics(answer.body.decode(errors="replace")) if answer is not None and answer.ok else {}


def as_telemetry(values: dict[str, float]) -> Telemetry:
    """The values that a heartbeat carries: counts as integers, the rate as it is."""
    return {
        name: value if name == "tokens_per_second" else int(value)
        for name, value in values.items()
        if name != "requests_waiting"
    }


def slots_idle(slots: Any) -> bool:
    """Whether the answer of /slots shows no slot at work; anything unreadable counts as work."""
    return isinstance(slots, list) and all(isinstance(s, dict) and s.get("is_processing") is False for s in slots)


def lists_model(models: Any, name: str) -> bool:
    """Whether the answer of /v1/models names *name*, as an id or an alias."""
    entries = models.get("data") if isinstance(models, dict) else None
    if not isinstance(entries, list):
        return False
    return any(name in _names_of(entry) for entry in entries if isinstance(entry, dict))


def _names_of(entry: dict[str, Any]) -> Iterable[Any]:
    aliases = entry.get("aliases")
    return [entry.get("id"), *(aliases if isinstance(aliases, list) else [])]


class LlamaDialect:
    """The questions that llama.cpp's server and the synthetic engine answer alike."""

    def __init__(self, worker_id: str) -> None:
        self._worker_id = worker_id

    def ready(self, probe: Probe) -> bool:
        """Healthy, and ours: before this engine has bound its port, a stranger there may well answer /health."""
        if not probe.healthy("/health"):
            return False
        models = probe.get("/v1/models")
        return models is not None and models.ok and lists_model(models.json(), self._worker_id)

    def healthy(self, probe: Probe) -> bool:
        return probe.healthy("/health")

    def idle(self, probe: Probe) -> bool | None:
        slots = probe.get("/slots")
        return slots is not None and slots.ok and slots_idle(slots.json())

    def telemetry(self, probe: Probe) -> Telemetry:
        return as_telemetry(metrics_of(probe))
