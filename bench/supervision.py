"""The bars of supervision: deaths seen, workers replaced, many at once, workers taken over from a killed hive."""

import json
import os
import re
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.measure import Row, answers, at_most, free_port, launched, percentile, seconds_until
from tests.hives import Hive, running_hive, wait_for

POOL = 10
"""Workers that are killed in turn: while one is killed, those killed before it come back."""
ROUNDS = 20
REPLACED_AT_ONCE = {"restart.max_delay": "1s", "restart.max_failures": "1000"}
"""Each is killed twenty times; by default its circuit would open at the fifth, and its delay grow to a minute."""
LIMIT = 120.0
POLL = 0.1
"""Seconds: a list of 200 workers is itself some work for the hive."""
FREEZES = 5
MANY = 200
CALLERS = 16
ADOPTED = 50
ADOPTIONS = 3
_DELAY = re.compile(r"^Restarting in ([0-9.]+) s")

Entry = dict[str, Any]


@dataclass(frozen=True)
class Kill:
    """One life of a worker, and when which of its processes was killed."""

    worker_id: str
    life: int
    part: str
    at: datetime


def deaths(folder: Path) -> Iterator[Row]:
    """From SIGKILL to out of routing, and to the fork of the next life, by the journal's own time."""
    with running_hive(folder / "deaths", REPLACED_AT_ONCE) as hive:
        ids = [hive.spawn(f"synthetic:m{number}") for number in range(POOL)]
        kills: list[Kill] = []
        for turn in range(ROUNDS):
            kills += _kill_each(hive, ids, ("pid", "engine_pid")[turn % 2], kills[-POOL:])
        _wait_all_idle(hive, POOL)
        journal = _journal(hive)
    for part, name in (("pid", "keeper"), ("engine_pid", "engine")):
        delays = [_seconds_routed(journal, kill) * 1000 for kill in kills if kill.part == part]
        yield _spread(f"kill -9 of the {name} to out of routing, p99 of {len(delays)}", delays, 50, "ms")
    late = [_seconds_replaced(journal, kill) for kill in kills]
    yield _spread(f"kill -9 to the fork of the next life, less its delay, p99 of {len(late)}", late, 1, "s")


def stale(folder: Path) -> Iterator[Row]:
    quick = {"heartbeat.interval": "0.5s", "heartbeat.stale_after": "2s"}
    with running_hive(folder / "stale", quick) as hive:
        late = []
        for number in range(FREEZES):
            worker = hive.ready(f"synthetic:m{number}", restart="never")
            os.kill(worker["pid"], signal.SIGSTOP)
            # What it sent before it stopped is read by then.
            time.sleep(0.3)
            age, now = hive.worker(worker["worker_id"])["last_heartbeat_age_seconds"], datetime.now(UTC)
            hive.wait_state(worker["worker_id"], "failed")
            found = _left_routing(_journal(hive), worker["worker_id"], 1)
            late.append((found - now).total_seconds() + age - 2.0)
        yield at_most(f"a frozen worker is found after its deadline, worst of {FREEZES}", max(late), 0.2, "s")


def many(folder: Path) -> Iterator[Row]:
    """Workers without a model: what this costs is the hive's own work and the start of two processes each."""
    with running_hive(folder / "many") as hive, ThreadPoolExecutor(CALLERS) as callers:
        begin = time.perf_counter()
        ids = list(callers.map(lambda number: hive.spawn(f"synthetic:m{number}"), range(MANY)))
        _wait_all_idle(hive, MANY)
        started = time.perf_counter() - begin
        begin = time.perf_counter()
        list(callers.map(lambda worker_id: hive.call("DELETE", f"/v1/workers/{worker_id}"), ids))
        seconds_until(lambda: not hive.get("/v1/workers").json["workers"], LIMIT, POLL)
        seconds_until(lambda: not hive.processes(), LIMIT, POLL)
        stopped = time.perf_counter() - begin
    yield Row(f"{MANY} workers at once, the first call to all idle", f"{started:.3g} s", "")
    yield Row(f"{MANY} workers at once, the first DELETE to no process left", f"{stopped:.3g} s", "")
    yield at_most(f"{MANY} workers started and stopped, the sum", started + stopped, 60, "s")


def adoption(folder: Path) -> Iterator[Row]:
    """From the exec of the next hive after kill -9 until it is ready, all workers in their places."""
    hive = Hive(folder / "adoption", port=free_port())
    with launched(hive):
        seconds_until(lambda: answers(hive.port, "/readyz"), LIMIT)
        for number in range(ADOPTED):
            hive.spawn(f"synthetic:m{number}")
        _wait_all_idle(hive, ADOPTED)
        before = _pids(hive)
        found = []
        for _ in range(ADOPTIONS):
            found.append(_relaunch(hive))
            _wait_all_idle(hive, ADOPTED)
            assert _pids(hive) == before, "a worker was started anew"
    what = f"hive killed: start of the next to {ADOPTED} workers taken over, median of {ADOPTIONS}"
    yield at_most(what, statistics.median(found), 2, "s", max(found))


def _relaunch(hive: Hive) -> float:
    """Seconds from the start of the next hive until it is ready."""
    assert hive.process is not None
    hive.process.kill()
    hive.process.wait()
    begin = time.perf_counter()
    hive.launch()
    seconds_until(lambda: answers(hive.port, "/readyz"), LIMIT)
    return time.perf_counter() - begin


def _kill_each(hive: Hive, ids: Sequence[str], part: str, before: Sequence[Kill]) -> Iterator[Kill]:
    """*before*: the last kill of each, none of which is taken for the life after it."""
    for index, worker_id in enumerate(ids):
        last = before[index].life if before else 0
        worker = wait_for(lambda w=worker_id, n=last: _idle_after(hive.worker(w), n), f"{worker_id} is replaced")
        at = datetime.now(UTC)
        os.kill(worker[part], signal.SIGKILL)
        yield Kill(worker_id, worker["incarnation"], part, at)


def _idle_after(worker: Entry, life: int) -> Entry | None:
    return worker if worker["state"] == "idle" and worker["incarnation"] > life else None


def _wait_all_idle(hive: Hive, count: int) -> None:
    def all_idle() -> bool:
        states = [worker["state"] for worker in hive.get("/v1/workers").json["workers"]]
        return states == ["idle"] * count

    seconds_until(all_idle, LIMIT, POLL)


def _pids(hive: Hive) -> dict[str, tuple[int, int]]:
    workers = hive.get("/v1/workers").json["workers"]
    return {worker["worker_id"]: (worker["pid"], worker["engine_pid"]) for worker in workers}


def _journal(hive: Hive) -> list[Entry]:
    """What it holds until now: a mark that is written after it ends the reading."""
    mark = hive.spawn("synthetic:mark", restart="never")
    found: list[Entry] = []
    with hive.stream("/v1/events", {"last-event-id": "0"}) as lines:
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            entry = json.loads(line[5:])
            if entry["worker_id"] == mark:
                break
            found.append(entry)
    hive.call("DELETE", f"/v1/workers/{mark}")
    return found


def _left_routing(journal: Sequence[Entry], worker_id: str, life: int) -> datetime:
    return next(
        datetime.fromisoformat(entry["at"])
        for entry in journal
        if (entry["worker_id"], entry["incarnation"]) == (worker_id, life)
        and entry["before"] == "ready" != entry["after"]
    )


def _seconds_routed(journal: Sequence[Entry], kill: Kill) -> float:
    return (_left_routing(journal, kill.worker_id, kill.life) - kill.at).total_seconds()


def _seconds_replaced(journal: Sequence[Entry], kill: Kill) -> float:
    """From the kill to the next fork, less the delay that the message names (to a tenth of a second)."""
    own = [entry for entry in journal if entry["worker_id"] == kill.worker_id]
    delay = next(
        float(named[1])
        for entry in own
        if entry["incarnation"] == kill.life and (named := _DELAY.match(entry["message"]))
    )
    forked = next(entry for entry in own if entry["event"] == "Spawned" and entry["incarnation"] == kill.life + 1)
    return (datetime.fromisoformat(forked["at"]) - kill.at).total_seconds() - delay


def _spread(what: str, values: Sequence[float], bar: float, unit: str) -> Row:
    p50, p99 = percentile(values, 50), percentile(values, 99)
    measured = f"{p99:.3g} {unit} (p50 {p50:.3g}, worst {max(values):.3g})"
    return Row(what, measured, f"<= {bar:g} {unit}", p99 <= bar)
