"""What the gateway costs beside its peers: processor time, time added to the first byte, memory. All in one run."""

import statistics
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.gateway import load, proxies, rounds
from bench.gateway.proxies import DIRECT, HAPROXY, LITELLM, OURS, PLAIN, SMG, Proxy
from bench.gateway.rounds import Cost
from bench.measure import MIB, Row, percentile

ROUNDS: Final = 5
SLOW_ROUNDS: Final = 2
"""Of those that cost milliseconds a request: they need no more to be told from the others."""

REQUESTS: Final = {LITELLM: 150, PLAIN: 800}
MANY_REQUESTS: Final = 6000
CLIENTS: Final = 32
RATE: Final = 1000.0
"""Requests a second where each comes alone."""

SECONDS: Final = 2.0
STREAMS: Final = {LITELLM: 4}
"""As many as it can serve in time."""

MANY_STREAMS: Final = 64
INTERVAL_MS: Final = 20
ADDED_SECONDS: Final = 2.0
ADDED_ROUNDS: Final = 5
SHARE_OF_HIGHEST: Final = 4

FAST: Final = (HAPROXY, OURS, SMG)
SLOW: Final = (PLAIN, LITELLM)
BARS: Final = {"request": {HAPROXY: 2.5, SMG: 0.4}, "chunk": {HAPROXY: 1.7, SMG: 0.9}}
"""The most that ours may cost, as a multiple of theirs."""


HEADINGS: Final = (
    "proxy",
    "a request of 32 clients",
    f"a request, {RATE:g} a second",
    "a chunk, each alone",
    "a chunk, 64 at once",
    "added p50 / p99",
    "idle",
)


@dataclass
class Comparison:
    """What was found, by proxy; ``added`` is p50 and p99 in seconds, and the rate at which they were taken."""

    idle_bytes: dict[str, int] = field(default_factory=dict)
    requests: list[dict[str, Cost]] = field(default_factory=list)
    lone_requests: list[dict[str, Cost]] = field(default_factory=list)
    chunks: list[dict[str, Cost]] = field(default_factory=list)
    heaped_chunks: list[dict[str, Cost]] = field(default_factory=list)
    added: dict[str, tuple[float, float, float]] = field(default_factory=dict)

    def closed_rate(self, name: str) -> float:
        return max(costs[name].rate for costs in self.requests if name in costs)


def gateway_price(folder: Path) -> Iterator[Row]:
    found = compare(folder / "price")
    yield from _ratios("processor time of a JSON request, 32 clients that ask at once", found.requests, "request")
    yield from _ratios(f"processor time of a JSON request, {RATE:g} a second", found.lone_requests, "request")
    streams = "processor time of a streamed chunk, 64 streams, one every 20 ms"
    yield from _ratios(f"{streams}, each at its own moment", found.chunks, "chunk")
    yield from _ratios(f"{streams}, all at the same moment", found.heaped_chunks, "chunk")
    yield from _added_rows(found)
    for name, *figures in lines(found):
        yield Row(f"comparison: {name}", "; ".join(map(" ".join, zip(HEADINGS[1:], figures, strict=True))), "")


def _added_rows(found: Comparison) -> Iterator[Row]:
    if OURS not in found.added:
        yield Row("added to the first byte", "not measured: HAProxy is not there", "<= 1 ms p50, 5 ms p99")
        return
    rate = found.added[OURS][2]
    for number, (name, bar) in enumerate((("p50", 1.0), ("p99", 5.0))):
        own, theirs = (found.added[proxy][number] * 1000 for proxy in (OURS, HAPROXY))
        what = f"added to the first byte, {name}, at {rate:.0f} requests a second (HAProxy's highest / 4)"
        yield Row(what, f"{own:.2f} ms (HAProxy {theirs:.2f})", f"<= {bar:g} ms", own <= bar)


def compare(folder: Path) -> Comparison:
    """Measure whoever of the peers is there."""
    found = Comparison()
    with proxies.standing(folder, [DIRECT, *FAST, *SLOW]) as there, rounds.loader() as pool:
        found.idle_bytes = {name: proxy.rss_bytes() for name, proxy in there.items() if proxy.pids}
        fast = [there[name] for name in FAST if name in there]
        slow = [there[name] for name in SLOW if name in there]
        found.requests = _taken(fast, slow, lambda proxy: _request(pool, proxy))
        found.lone_requests = _taken(fast, [], lambda proxy: rounds.a_request_now_and_then(pool, proxy, SECONDS, RATE))
        found.chunks = _taken(fast, slow, lambda proxy: _chunk(pool, proxy))
        found.heaped_chunks = _taken(fast, [], lambda proxy: _chunk(pool, proxy, together=True))
        if HAPROXY in there:
            found.added = added(pool, [there[DIRECT], *fast], rounds.highest_rate(pool, there[HAPROXY]))
        for proxy in slow:
            found.added |= added(pool, [there[DIRECT], proxy], found.closed_rate(proxy.name))
    return found


def lines(found: Comparison) -> Iterator[list[str]]:
    """A line for each proxy, in the columns of HEADINGS."""
    for name in [name for name in (HAPROXY, OURS, SMG, PLAIN, LITELLM) if name in found.idle_bytes]:
        added = found.added.get(name)
        yield [
            name,
            _micros(found.requests, name),
            _micros(found.lone_requests, name),
            _micros(found.chunks, name),
            _micros(found.heaped_chunks, name),
            "-" if added is None else f"{added[0] * 1000:.2f} / {added[1] * 1000:.2f} ms at {added[2]:.0f}/s",
            f"{found.idle_bytes[name] / MIB:.0f} MiB",
        ]


def _micros(taken: list[dict[str, Cost]], name: str) -> str:
    costs = [costs for costs in taken if name in costs]
    return f"{rounds.median_micros(costs, name):.0f} us" if costs else "-"


def _taken(fast: list[Proxy], slow: list[Proxy], measure: rounds.Measure) -> list[dict[str, Cost]]:
    taken = [costs for _, costs in rounds.in_turn(fast, ROUNDS, measure)]
    for number, costs in rounds.in_turn(slow, SLOW_ROUNDS, measure):
        taken[number] |= costs
    return taken


def _request(pool: Executor, proxy: Proxy) -> Cost:
    return rounds.a_request(pool, proxy, REQUESTS.get(proxy.name, MANY_REQUESTS), CLIENTS)


def _chunk(pool: Executor, proxy: Proxy, *, together: bool = False) -> Cost:
    streams = STREAMS.get(proxy.name, MANY_STREAMS)
    return rounds.a_chunk(pool, proxy, rounds.Paced(SECONDS, streams, INTERVAL_MS, together))


def added(pool: Executor, both: list[Proxy], highest: float) -> dict[str, tuple[float, float, float]]:
    """Seconds that each of *both* (DIRECT among them) adds to the first byte at a quarter of the *highest* rate.

    By proxy p50 and p99, each the median of the rounds' differences to going there directly, and the rate.
    """
    rate = highest / SHARE_OF_HIGHEST
    differences: dict[str, list[list[float]]] = {proxy.name: [] for proxy in both}
    for number in range(ADDED_ROUNDS):
        first, found = number % len(both), {}
        for proxy in [*both[first:], *both[:first]]:
            result = pool.submit(load.run, load.Open(proxy.port, rate, ADDED_SECONDS)).result().check()
            found[proxy.name] = [percentile(result.took, percent) for percent in (50, 99)]
        for name, percentiles in found.items():
            differences[name].append([own - bare for own, bare in zip(percentiles, found[DIRECT], strict=True)])
    return {
        name: (statistics.median(p50 for p50, _ in all_rounds), statistics.median(p99 for _, p99 in all_rounds), rate)
        for name, all_rounds in differences.items()
    }


def _ratios(what: str, taken: list[dict[str, Cost]], each: str) -> Iterator[Row]:
    for peer, bar in BARS[each].items():
        if peer not in taken[0]:
            yield Row(f"{what}, rbee-hive / {peer}", "not measured: the peer is not there", f"<= {bar:g}")
            continue
        ratio = rounds.median_ratio(taken, OURS, peer)
        both = f"{_micros(taken, OURS)} / {_micros(taken, peer)}"
        yield Row(
            f"{what}, rbee-hive / {peer}, median of {ROUNDS}", f"{ratio:.2f} ({both})", f"<= {bar:g}", ratio <= bar
        )
