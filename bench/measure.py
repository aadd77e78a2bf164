"""How the figures are taken and judged: processor time and memory from the kernel, streams from a plain client."""

import http.client
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hives import Hive

MIB = 2**20
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Row:
    """One line of the table. *held* is None where there is no bar."""

    what: str
    measured: str
    bar: str
    held: bool | None = None


def at_most(what: str, value: float, bar: float, unit: str, worst: float | None = None) -> Row:
    beside = "" if worst is None else f" (worst {worst:.3g})"
    return Row(what, f"{value:.3g} {unit}{beside}", f"<= {bar:g} {unit}", value <= bar)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that *percent* of all do not exceed (nearest rank)."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, from fields 14 and 15 of /proc/pid/stat (10 ms steps)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def rss_bytes(pid: int) -> int:
    return _kib(Path(f"/proc/{pid}/status"), "VmRSS:")


def peak_rss_bytes(pid: int) -> int:
    """The most that was ever resident of it."""
    return _kib(Path(f"/proc/{pid}/status"), "VmHWM:")


def pss_bytes(pid: int) -> int:
    """Proportional set size: shared pages count by the number of those who share them."""
    return _kib(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")


def _kib(path: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(name)) * 1024


def seconds_until(probe: Callable[[], bool], limit: float, pause: float = 0.005) -> float:
    start = time.perf_counter()
    while not probe():
        if time.perf_counter() - start > limit:
            raise TimeoutError(f"not within {limit:g} s")
        time.sleep(pause)
    return time.perf_counter() - start


def tcp(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=30)


def answers(port: int, path: str) -> bool:
    connection = tcp(port)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def launched(hive: Hive) -> Iterator[None]:
    """The daemon's process alone, started without waiting for anything."""
    hive.launch()
    try:
        yield
    finally:
        hive.end()


def stream_tokens(port: int, model: str, key: str, tokens: int) -> int:
    """Ask for exactly *tokens* tokens as a stream; returns the number of events that came."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": "Tell me a long story about bees."}],
        "max_tokens": tokens,
        "stream": True,
        "temperature": 0,
        "ignore_eos": True,
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(answer.read())
    events = sum(line.startswith(b"data:") for line in iter(answer.readline, b""))
    connection.close()
    return events


def tokens_per_second(port: int, model: str, key: str, clients: int, tokens: int) -> float:
    """All clients start together; the tokens of all over the time until the last has ended."""
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            stream_tokens(port, model, key, tokens)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return clients * tokens / (time.perf_counter() - start)
