"""Proxies measured in turn, so that a machine whose speed drifts is as fast for one as for the other."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Final

from bench.gateway import load
from bench.gateway.proxies import Proxy
from bench.measure import percentile


@contextmanager
def loader() -> Iterator[Executor]:
    """The process that plans of load run in."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


@dataclass(frozen=True)
class Cost:
    """*micros*: microseconds of processor time for each; *rate*: how many a second came."""

    micros: float
    rate: float


FIRST_RATE: Final = 1000.0
STEP: Final = 2**0.5
IN_TIME: Final = 0.05
"""Seconds for 99 of 100: whoever cannot keep up has a growing line, and is far beyond it before the second is over."""

Measure = Callable[[Proxy], Cost]


def a_request(pool: Executor, proxy: Proxy, requests: int, connections: int = 32) -> Cost:
    """Processor time of a JSON request that comes as soon as the one before is answered."""
    before = proxy.cpu_seconds()
    result = pool.submit(load.run, load.Closed(proxy.port, requests, connections)).result().check()
    return Cost((proxy.cpu_seconds() - before) / result.asked * 1e6, result.asked / result.seconds)


def a_request_now_and_then(pool: Executor, proxy: Proxy, seconds: float, rate: float = 1000) -> Cost:
    """Processor time of a JSON request where there is time between two of them: each is woken for alone."""
    before = proxy.cpu_seconds()
    result = pool.submit(load.run, load.Open(proxy.port, rate, seconds)).result().check()
    return Cost((proxy.cpu_seconds() - before) / result.asked * 1e6, result.asked / result.seconds)


@dataclass(frozen=True)
class Paced:
    """Streams of chunks; *together*: of all of them at the same moments, as an engine sends what one step made."""

    seconds: float
    streams: int = 64
    interval_ms: int = 20
    together: bool = False


def a_chunk(pool: Executor, proxy: Proxy, paced: Paced) -> Cost:
    """Processor time of one chunk of a stream, the streams' beginning and end shared out among their chunks."""
    interval, chunks = paced.interval_ms, int(paced.seconds * 1000 / paced.interval_ms)
    limit = paced.seconds + load.PATIENCE
    plan = load.Streams(proxy.port, paced.streams, chunks, interval, interval / 1000, limit, paced.together)
    before = proxy.cpu_seconds()
    result = pool.submit(load.run, plan).result().check()
    return Cost((proxy.cpu_seconds() - before) / result.events * 1e6, result.events / result.seconds)


def highest_rate(pool: Executor, proxy: Proxy) -> float:
    """The most requests a second, of rising rates, that all go out and come back in time; 0 if even the first fail."""
    highest, rate = 0.0, FIRST_RATE
    # A second try: the machine may just have done something else.
    while _keeps_up(pool, proxy, rate) or _keeps_up(pool, proxy, rate):
        highest, rate = rate, rate * STEP
    return highest


def _keeps_up(pool: Executor, proxy: Proxy, rate: float) -> bool:
    result = pool.submit(load.run, load.Open(proxy.port, rate, 1.0)).result()
    return not result.errors and percentile(result.took, 99) <= IN_TIME


def in_turn(proxies: Sequence[Proxy], rounds: int, measure: Measure) -> Iterator[tuple[int, dict[str, Cost]]]:
    """One round after the other, each proxy once a round and each round with another one first."""
    for number in range(rounds if proxies else 0):
        first = number % len(proxies)
        yield number, {proxy.name: measure(proxy) for proxy in [*proxies[first:], *proxies[:first]]}


def median_ratio(rounds: Sequence[dict[str, Cost]], of: str, to: str) -> float:
    """The median of the rounds' own ratios: what both had of the machine's mood in common falls out."""
    return statistics.median(costs[of].micros / costs[to].micros for costs in rounds)


def median_micros(rounds: Sequence[dict[str, Cost]], of: str) -> float:
    return statistics.median(costs[of].micros for costs in rounds)
