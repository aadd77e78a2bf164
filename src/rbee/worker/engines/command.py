"""Any server that speaks OpenAI's API: vLLM, llama-server, SGLang. What runs is a template from the settings file."""

import re
from collections.abc import Sequence

from rbee.worker.engines.base import Launch, Plan, Probe, Telemetry
from rbee.worker.engines.dialect import as_telemetry, metrics_of, read_metrics


class Command:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def launch(self, port: int, key: str) -> Launch:
        """The key goes by environment, under the names that vLLM and llama-server read."""
        plan = self._plan
        values = {
            "port": str(port),
            "model": plan.model,
            "host": plan.host,
            "slots": str(plan.slots),
            "ctx_size": str(plan.ctx_size),
            "device_count": str(plan.device_count),
        }
        names = ("RBEE_ENGINE_KEY", "VLLM_API_KEY", "LLAMA_API_KEY") if key else ()
        return Launch(fill(plan.template, values, plan.names), dict.fromkeys(names, key))

    def ready(self, probe: Probe) -> bool:
        return probe.healthy(self._plan.health_path)

    def healthy(self, probe: Probe) -> bool:
        return probe.healthy(self._plan.health_path)

    def idle(self, probe: Probe) -> bool | None:
        """By its metrics page where that has a known name. Without one nothing can be known: the hive has drained the
        worker by its own count before it asks, so a stop is then not held up."""
        answer = probe.get("/metrics")
        if answer is None:
            return False  # it has no time to answer, so it works
        values = read_metrics(answer.body.decode(errors="replace")) if answer.ok else {}
        if "slots_busy" not in values:
            return None
        return values["slots_busy"] + values.get("requests_waiting", 0.0) == 0

    def telemetry(self, probe: Probe) -> Telemetry:
        return as_telemetry(metrics_of(probe))

    def lost_port(self, last_lines: list[str]) -> bool:
        """In the words of Python's and C's bind errors, which is what these servers print."""
        text = "\n".join(last_lines).lower()
        return "address already in use" in text or "couldn't bind" in text


def fill(template: Sequence[str], values: dict[str, str], names: Sequence[str]) -> list[str]:
    """The template with ``{port}``, ``{model}``, ``{host}``, ``{slots}``, ``{ctx_size}`` and ``{device_count}``
    replaced.

    An argument that is ``{names}`` alone becomes one argument a name (vLLM's ``--served-model-name``); inside a
    longer one the names are joined by commas (``--alias={names}`` of llama-server). Other braces stay, for JSON.
    """
    known = {**values, "names": ",".join(names)}
    place = re.compile("{(" + "|".join(known) + ")}")  # one pass: a brace inside a value is never filled in turn
    filled: list[str] = []
    for argument in template:
        if argument == "{names}":
            filled += names
        else:
            filled.append(place.sub(lambda found: known[found[1]], argument))
    return filled
