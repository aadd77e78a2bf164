"""The bars of the hive in one run: start, idle, heartbeats, load, keeper, tokens, command line, supervision, admission,
and what the gateway costs beside its peers.

Prints a table. Exit status 1 when a bar is missed: a figure is never rounded into one.
"""

import argparse
import http.client
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from bench import admission, affinity, lost_clients, models, sampling, supervision
from bench.gateway.price import gateway_price
from bench.gateway.streams import gateway_scale, gateway_streams
from bench.measure import (
    MIB,
    Row,
    answers,
    at_most,
    cpu_seconds,
    free_port,
    launched,
    pss_bytes,
    rss_bytes,
    seconds_until,
    tcp,
    tokens_per_second,
)
from rbee.core import auth
from tests.hives import Hive, clean_environ, example_model, running_hive

PAIRS = 9
TOKENS = {1: 384, 4: 192}
"""By clients: long enough that neither start-up nor a moment's noise decides."""
SHARE = {1: 0.98, 4: 0.99}
"""By clients: the least that the gateway leaves of the tokens a second."""
IDLE_SECONDS = 20.0
IDLE_WORKERS = 10
MONITOR_INTERVAL = 30.0
"""Seconds: one round of health checks, one heartbeat of each worker, six measurements of their memory."""
BEATS = 2000
STARTS = 5


def start_and_idle(folder: Path) -> Iterator[Row]:
    health, ready = [], []
    for number in range(STARTS):
        hive = Hive(folder / f"start{number}", {}, port=free_port())
        begin = time.perf_counter()
        with launched(hive):
            seconds_until(lambda hive=hive: answers(hive.port, "/v1/health"), 20)
            health.append(time.perf_counter() - begin)
            seconds_until(lambda hive=hive: answers(hive.port, "/readyz"), 20)
            ready.append(time.perf_counter() - begin)
    for what, found, bar in (("/v1/health", health, 1.0), ("/readyz", ready, 2.0)):
        yield at_most(f"start to {what}, median of {STARTS}", statistics.median(found), bar, "s", max(found))
    with running_hive(folder / "idle") as hive:
        assert hive.process is not None
        pid = hive.process.pid
        time.sleep(2)
        before = cpu_seconds(pid)
        time.sleep(IDLE_SECONDS)
        used = (cpu_seconds(pid) - before) / IDLE_SECONDS * 100
        yield at_most("idle: resident memory", rss_bytes(pid) / MIB, 90, "MiB")
        yield at_most(f"idle: processor over {IDLE_SECONDS:g} s", used, 0.5, "% of a core")
        for number in range(IDLE_WORKERS):
            hive.ready(f"synthetic:m{number}")
        before = cpu_seconds(pid)
        time.sleep(MONITOR_INTERVAL)
        used = (cpu_seconds(pid) - before) / MONITOR_INTERVAL * 100
        what = f"idle with {IDLE_WORKERS} idle workers: processor over {MONITOR_INTERVAL:g} s"
        yield at_most(what, used, 0.5, "% of a core")


def heartbeats(folder: Path) -> Iterator[Row]:
    with running_hive(folder / "beats", {"log.level": "info"}) as hive:
        assert hive.process is not None
        worker_id = hive.ready()["worker_id"]
        token = auth.worker_token((hive.state_dir / "secret").read_bytes(), worker_id, 1)
        path = hive.state_dir / "control.sock"
        for name, connect in (("its socket", lambda: _unix(path)), ("port 9200", lambda: tcp(hive.port))):
            before = cpu_seconds(hive.process.pid)
            for _ in range(BEATS):
                _beat(connect(), worker_id, token)
            each = (cpu_seconds(hive.process.pid) - before) / BEATS * 1000
            yield at_most(f"a heartbeat through {name}, a connection each", each, 1.0, "ms of processor")


def load_and_keeper(folder: Path) -> Iterator[Row]:
    alone, spawned, pss = [], [], []
    with running_hive(folder / "load") as hive:
        for _ in range(5):
            alone.append(_engine_alone())
            begin = time.perf_counter()
            worker_id = hive.spawn("example")
            seconds_until(lambda w=worker_id: hive.worker(w)["state"] == "idle", 60, 0.01)
            spawned.append(time.perf_counter() - begin)
            pss.append(pss_bytes(hive.worker(worker_id)["pid"]))
            hive.call("DELETE", f"/v1/workers/{worker_id}")
            hive.wait_state(worker_id, "gone")
    yield Row("engine alone, start to loaded, median of 5", f"{statistics.median(alone):.2f} s", "")
    extra = statistics.median(b - a for a, b in zip(alone, spawned, strict=True))
    yield at_most("spawn call to ready, beyond that, median of 5 pairs", extra, 0.5, "s")
    yield at_most("keeper: proportional set size, worst of 5", max(pss) / MIB, 20, "MiB")
    with running_hive(folder / "keeper", {"heartbeat.interval": "1s", "heartbeat.stale_after": "60s"}) as hive:
        pid = hive.ready("example")["pid"]
        time.sleep(2)
        before = cpu_seconds(pid)
        time.sleep(IDLE_SECONDS)
        used = (cpu_seconds(pid) - before) / IDLE_SECONDS * 100
        yield at_most("keeper: processor with a beat every second", used, 1.0, "% of a core")


def tokens(folder: Path) -> Iterator[Row]:
    with running_hive(folder / "tokens") as hive:
        worker = hive.ready("example")
        worker_id, direct = worker["worker_id"], int(worker["url"].rpartition(":")[2])
        key = auth.engine_key((hive.state_dir / "secret").read_bytes(), worker_id, 1)
        for clients in TOKENS:
            tokens_per_second(direct, worker_id, key, clients, 8)
            ratios, speeds = [], []
            for pair in range(PAIRS):
                # In turn, and each first every other time: the machine's speed drifts.
                ports = (direct, hive.port) if pair % 2 else (hive.port, direct)
                found = {port: tokens_per_second(port, worker_id, key, clients, TOKENS[clients]) for port in ports}
                ratios.append(found[hive.port] / found[direct])
                speeds.append(found[hive.port])
            ratio, spread = statistics.median(ratios), f"{min(ratios):.3f} to {max(ratios):.3f}"
            what = f"tokens through the gateway / direct, {clients} client{'s' * (clients > 1)}, median of {PAIRS}"
            speed = f"{statistics.median(speeds):.0f} tok/s"
            yield Row(what, f"{ratio:.3f} ({spread}; {speed})", f">= {SHARE[clients]}", ratio >= SHARE[clients])


def command_line(folder: Path) -> Iterator[Row]:
    with running_hive(folder / "cli") as hive:
        hive.ready()
        times = []
        for _ in range(10):
            begin = time.perf_counter()
            environ = clean_environ({"RBEE_URL": f"http://127.0.0.1:{hive.port}"})
            program = Path(sys.executable).with_name("rbee")
            subprocess.run([program, "ps"], check=True, capture_output=True, env=environ)
            times.append(time.perf_counter() - begin)
        yield at_most("rbee ps, whole process, median of 10", statistics.median(times), 0.3, "s")


def _engine_alone() -> float:
    """The engine's own load: the same engine process that a keeper starts, with nothing round it."""
    port = free_port()
    begin = time.perf_counter()
    engine = subprocess.Popen(
        [sys.executable, "-c", _ENGINE, str(example_model()), str(port)], stderr=subprocess.DEVNULL
    )
    try:
        seconds_until(lambda: answers(port, "/health"), 60)
        return time.perf_counter() - begin
    finally:
        engine.kill()
        engine.wait()


_ENGINE = """
import signal, sys
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port = sys.argv[1], int(sys.argv[2])
params.n_parallel, params.n_ctx = 4, 4 * 4096
params.n_batch = params.n_ubatch = 512
params.cache_ram_mib, params.fit_params, params.n_gpu_layers = 512, False, 0
params.endpoint_metrics = params.endpoint_slots = True
params.ui = False
server = xllamacpp.Server(params)
signal.pause()
"""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(self._path))


def _unix(path: Path) -> http.client.HTTPConnection:
    return _UnixConnection(path)


def _beat(connection: http.client.HTTPConnection, worker_id: str, token: str) -> None:
    telemetry = {"rss_bytes": 10**9, "slots_total": 4, "slots_busy": 1, "requests_total": 7}
    body = {"worker_id": worker_id, "incarnation": 1, "timestamp": datetime.now(UTC).isoformat()}
    sent = json.dumps({**body, "health_status": "healthy", "telemetry": telemetry}).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
    connection.request("POST", "/v1/heartbeat", sent, headers)
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    answer.read()
    connection.close()


PARTS = {
    "start": start_and_idle,
    "beats": heartbeats,
    "load": load_and_keeper,
    "tokens": tokens,
    "cli": command_line,
    "headers": models.headers,
    "deaths": supervision.deaths,
    "stale": supervision.stale,
    "many": supervision.many,
    "adoption": supervision.adoption,
    "sampling": sampling.sampling,
    "admission": admission.admission,
    "gateway_price": gateway_price,
    "gateway_streams": gateway_streams,
    "gateway_scale": gateway_scale,
    "affinity": affinity.affinity,
    "lost_clients": lost_clients.lost_clients,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="only these")
    chosen = parser.parse_args().parts or list(PARTS)
    missed = 0
    print("| what | measured | bar | held |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="rbee-bench-") as folder:
        for part in chosen:
            for row in PARTS[part](Path(folder)):
                held = {True: "yes", False: "**no**", None: ""}[row.held]
                missed += row.held is False
                print(f"| {row.what} | {row.measured} | {row.bar} | {held} |", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
