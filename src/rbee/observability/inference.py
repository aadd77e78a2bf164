"""What the gateway's requests came to: counted here, since the library's own counters cost more than a request may.

The library renders it. Requests are counted in small batches: a few at once cost half of what each would alone.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from rbee.core.usage import Usage

DURATION_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
FIRST_TOKEN_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SPEED_BUCKETS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0)
OVERHEAD_BUCKETS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)
COUNTS_ONLY: Final = "/v1/messages/count_tokens"
"""What it tells of a prompt's tokens is the answer: no model has read them."""

BATCH: Final = 64
"""Requests; at some 2 us each nobody notices when they are counted."""

_PREFIX: Final = "rbee_hive_inference_"


class Distribution:
    """One histogram series: how many values lie up to each of its bounds."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        buckets, total = [], 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        family.add_metric(labels, buckets, self._sum)


class _OfModel:
    """The series of one model. A kind of token has a series from its first count on: unknown is not 0."""

    __slots__ = ("duration", "first", "queue", "speed", "tokens")

    def __init__(self) -> None:
        self.duration = Distribution(DURATION_BUCKETS)
        self.queue = Distribution(DURATION_BUCKETS)
        self.first = Distribution(FIRST_TOKEN_BUCKETS)
        self.speed = Distribution(SPEED_BUCKETS)
        self.tokens: dict[str, int] = {}


class InferenceCounts(Collector):
    """The families of inference; ``used`` is their usage sink."""

    def __init__(self) -> None:
        self._pending: list[Usage] = []
        self._requests: dict[tuple[str, str, int], int] = {}
        self._models: dict[str, _OfModel] = {}
        self._overhead = Distribution(OVERHEAD_BUCKETS)

    def used(self, usage: Usage) -> None:
        """Count one finished request."""
        self._pending.append(usage)
        if len(self._pending) >= BATCH:
            self._count()

    def _count(self) -> None:
        pending, self._pending = self._pending, []
        for usage in pending:
            kind = (usage.model, usage.endpoint, usage.status)
            self._requests[kind] = self._requests.get(kind, 0) + 1
            series = self._models.get(usage.model)
            if series is None:
                series = self._models[usage.model] = _OfModel()
            series.duration.observe(usage.duration_seconds)
            series.queue.observe(usage.queue_seconds)
            if usage.stream and usage.first_byte_seconds is not None:
                series.first.observe(usage.first_byte_seconds)
            if usage.overhead_seconds is not None:
                self._overhead.observe(usage.overhead_seconds)
            if usage.endpoint != COUNTS_ONLY:
                _count_tokens(series, usage)

    def collect(self) -> Iterator[Metric]:
        self._count()
        requests = CounterMetricFamily(
            f"{_PREFIX}requests", "Finished inference requests.", labels=["model", "endpoint", "status"]
        )
        for (model, endpoint, status), count in self._requests.items():
            requests.add_metric([model, endpoint, str(status)], count)
        yield requests
        yield self._by_model("duration_seconds", "From request to the end of the answer.", "duration")
        yield self._by_model(
            "time_to_first_token_seconds", "From request to the first byte of a streamed answer.", "first"
        )
        yield self._by_model(
            "tokens_per_second", "Generated tokens of a request by the time of their generation.", "speed"
        )
        yield self._by_model("queue_seconds", "Time spent waiting for a worker.", "queue")
        tokens = CounterMetricFamily(f"{_PREFIX}tokens", "Tokens as the answers tell them.", labels=["model", "kind"])
        for model, series in self._models.items():
            for kind, count in series.tokens.items():
                tokens.add_metric([model, kind], count)
        yield tokens
        overhead = HistogramMetricFamily(
            "rbee_hive_gateway_overhead_seconds", "The gateway's own time in a request, queue and worker excluded."
        )
        self._overhead.add_to(overhead, [])
        yield overhead

    def _by_model(self, name: str, text: str, attribute: str) -> HistogramMetricFamily:
        family = HistogramMetricFamily(_PREFIX + name, text, labels=["model"])
        for model, series in self._models.items():
            distribution: Distribution = getattr(series, attribute)
            distribution.add_to(family, [model])
        return family


def _count_tokens(series: _OfModel, usage: Usage) -> None:
    tokens = series.tokens
    if usage.prompt_tokens is not None:
        tokens["prompt"] = tokens.get("prompt", 0) + usage.prompt_tokens
    if usage.generated_tokens is not None:
        tokens["generated"] = tokens.get("generated", 0) + usage.generated_tokens
    if usage.cached_tokens is not None:
        tokens["cached"] = tokens.get("cached", 0) + usage.cached_tokens
    if usage.tokens_per_second is not None:
        series.speed.observe(usage.tokens_per_second)
