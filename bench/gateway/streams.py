"""Many streams at once through the gateway: their memory, their pace, and whether anything disturbs it."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Final

from bench.gateway import load, payloads, proxies, rounds
from bench.gateway.proxies import DIRECT, OURS, Proxy
from bench.measure import MIB, Row, at_most, percentile, seconds_until
from tests.hives import Hive

IDLE_STREAMS: Final = 1000
LONG_MS: Final = 3_600_000
LONG_STREAM: Final = 1_000_000
"""Chunks."""

WARM_UP: Final = 3000
"""Requests before memory counts: what is imported and allocated once is then there."""

PACED: Final = 200
PACE_MS: Final = 50
STRETCH: Final = 6.0
"""Seconds of each of the parts that are compared: undisturbed, with scrapes, with spawns."""

SCRAPES: Final = 12
SPAWNS: Final = 3
CROWD: Final = 5000
CROWD_WORKERS: Final = 6
CROWD_CHUNKS: Final = 15
CROWD_SPREAD: Final = 5.0


def gateway_streams(folder: Path) -> Iterator[Row]:
    with proxies.standing(folder / "streams", [DIRECT, OURS]) as there, rounds.loader() as pool:
        proxy, upstream = there[OURS], there[DIRECT].port
        pool.submit(load.run, load.Closed(proxy.port, WARM_UP)).result().check()
        before = proxy.rss_bytes()
        running = pool.submit(load.run, load.Streams(proxy.port, IDLE_STREAMS, 2, LONG_MS, 2.0, 6.0))
        seconds_until(lambda: proxies.open_streams(upstream) == IDLE_STREAMS, 10, 0.05)
        held = _most(running, proxy.rss_bytes)
        running.result()
        extra = (held - before) / 1e6
        yield at_most(f"memory of {IDLE_STREAMS} open idle streams, over {before / 1e6:.0f} MB", extra, 60, "MB")
        yield _long(proxy, pool.submit(load.run, load.Streams(proxy.port, 1, LONG_STREAM, 0, 0.0, 120.0)))
        plan = load.Streams(proxy.port, PACED, int(5 * STRETCH * 1000 / PACE_MS), PACE_MS, PACE_MS / 1000, 60.0)
        yield from _disturbed(proxy, pool.submit(load.run, plan))


def gateway_scale(folder: Path) -> Iterator[Row]:
    with proxies.standing(folder / "scale", [OURS], CROWD_WORKERS) as there, rounds.loader() as pool:
        plan = load.Streams(there[OURS].port, CROWD, CROWD_CHUNKS, 1000, CROWD_SPREAD, CROWD_CHUNKS + 60.0)
        before = there[OURS].cpu_seconds()
        result = pool.submit(load.run, plan).result()
        used = (there[OURS].cpu_seconds() - before) / result.seconds * 100
    due = CROWD * (CROWD_CHUNKS + payloads.EVENTS_AT_END)
    lost, unanswered = due - result.events, CROWD - result.answered
    found = f"{unanswered} streams, {lost} of {due} events, {len(result.errors)} errors ({used:.0f} % of a core)"
    none = not (lost or unanswered or result.errors)
    yield Row(f"{CROWD} streams at a chunk a second: lost", found, "none", none)
    gap = percentile(result.took, 99) if result.took else float("inf")
    yield at_most(f"{CROWD} streams at a chunk a second: p99 gap", gap, 1.5, "s", max(result.took, default=0.0))


def _long(proxy: Proxy, running: "Future[load.Result]") -> Row:
    """From a second after its start, when the buffers have found their size, to the most until its end."""
    time.sleep(1)
    early = proxy.rss_bytes()
    growth = (_most(running, proxy.rss_bytes) - early) / MIB
    result = running.result().check()
    if result.events != LONG_STREAM + payloads.EVENTS_AT_END:
        raise RuntimeError(f"{result.events} events of {LONG_STREAM}")
    what = f"memory that one stream of {LONG_STREAM:,} chunks adds from its first second on"
    return at_most(what, growth, 1, "MiB")


def _most(running: "Future[load.Result]", read: Callable[[], int]) -> int:
    most = read()
    while not running.done():
        most = max(most, read())
        time.sleep(0.05)
    return most


def _disturbed(proxy: Proxy, running: "Future[load.Result]") -> Iterator[Row]:
    hive = proxy.hive
    assert hive is not None
    time.sleep(2)
    stretches = []
    for disturb in (_nothing, _scrapes, _spawns):
        begin = time.perf_counter()
        disturb(hive)
        time.sleep(max(0.0, begin + STRETCH - time.perf_counter()))
        stretches.append((begin, time.perf_counter()))
    result = running.result().check()
    gaps = [
        percentile([gap for at, gap in zip(result.at, result.took, strict=True) if begin <= at < end], 99)
        for begin, end in stretches
    ]
    for what, gap in (("a scrape every half second", gaps[1]), ("a spawn every 2 s", gaps[2])):
        added = f"{(gap - gaps[0]) * 1000:.1f} ms (to {gaps[0] * 1000:.1f})"
        described = f"p99 gap of {PACED} streams, a chunk every {PACE_MS} ms: added by {what}"
        yield Row(described, added, "<= 20 ms", gap - gaps[0] <= 0.02)


def _nothing(_hive: Hive) -> None:
    pass


def _scrapes(hive: Hive) -> None:
    for _ in range(SCRAPES):
        begin = time.perf_counter()
        if hive.get("/metrics").status != 200:
            raise RuntimeError("no metrics")
        time.sleep(max(0.0, STRETCH / SCRAPES - (time.perf_counter() - begin)))


def _spawns(hive: Hive) -> None:
    for number in range(SPAWNS):
        begin = time.perf_counter()
        body = {"model_ref": f"synthetic:s{number}"}
        answer = hive.post("/v1/workers/spawn", body, token=payloads.ADMIN_TOKEN)
        if answer.status != 200:
            raise RuntimeError(answer.body)
        seconds_until(lambda worker=answer.json["worker_id"]: _is_ready(hive, worker), 30, 0.1)
        time.sleep(max(0.0, STRETCH / SPAWNS - (time.perf_counter() - begin)))


def _is_ready(hive: Hive, worker_id: str) -> bool:
    answer = hive.get(f"/v1/workers/{worker_id}", token=payloads.ADMIN_TOKEN)
    return answer.status == 200 and answer.json["state"] == "idle"
