"""How a hive starts, what keeps it from starting, and that nothing is left when it has ended."""

import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hives import QUICK, clean_environ, is_alive, running_hive, wait_for

TOKEN = {"RBEE_API_TOKEN": "a-token-that-is-long-enough"}


def run_daemon(*arguments, environ=None):
    """A start that is expected to be refused."""
    return subprocess.run(
        [sys.executable, "-m", "rbee.cli.hive", "daemon", *map(str, arguments)],
        env=clean_environ(environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_second_hive_on_the_same_state_directory_is_refused_and_touches_nothing(hive):
    before = sorted(path.name for path in hive.state_dir.iterdir())
    refused = run_daemon("--state-dir", hive.state_dir, "--port", 0)
    assert refused.returncode == 3
    assert f"pid {hive.process.pid}" in refused.stderr
    assert "--state-dir" in refused.stderr
    assert sorted(path.name for path in hive.state_dir.iterdir()) == before
    assert hive.get("/readyz").status == 200


def test_a_port_that_is_taken_is_told_with_who_holds_it(hive, tmp_path):
    refused = run_daemon("--state-dir", tmp_path / "other", "--port", hive.port)
    assert refused.returncode == 3
    assert f"(pid {hive.process.pid}) listens there" in refused.stderr
    assert f"--port {hive.port + 1}" in refused.stderr
    assert hive.get("/readyz").status == 200


@pytest.mark.parametrize(
    ("arguments", "environ", "says"),
    [
        (["--host", "0.0.0.0"], {}, "no token is set"),
        (["--host", "0.0.0.0"], {"RBEE_API_TOKEN": "short"}, "at least 16"),
        (["--set", "heartbeat.stale_after=10s"], {}, "twice"),
        (["--set", "heartbeat.intervall=10s"], {}, "heartbeat.interval"),
        ([], {"RBEE_HIVE__SERVER__PROT": "1"}, "RBEE_HIVE__SERVER__PROT"),
        (["--host", "no.such.host.invalid"], {}, "server.host"),
    ],
)
def test_a_start_that_would_be_wrong_is_refused_in_one_line(tmp_path, arguments, environ, says):
    refused = run_daemon("--state-dir", tmp_path / "state", "--port", 0, *arguments, environ=environ)
    assert refused.returncode == 2
    last = refused.stderr.strip().splitlines()[-1]
    assert last.startswith("rbee-hive: ")
    assert says in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "short" not in refused.stderr.replace("too short", "")


def test_an_address_that_is_not_ours_is_not_called_a_port_in_use(tmp_path):
    refused = run_daemon("--state-dir", tmp_path / "state", "--port", 9555, "--host", "192.0.2.1", environ=TOKEN)
    assert refused.returncode == 2
    assert "server.host = 192.0.2.1" in refused.stderr
    assert "listens there" not in refused.stderr


def test_a_directory_that_others_use_is_left_as_it_is(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    (shared / "file").touch()
    refused = run_daemon("--state-dir", shared, "--port", 0)
    assert refused.returncode == 2
    assert f"chmod 700 {shared}" in refused.stderr
    assert stat.S_IMODE(shared.stat().st_mode) == 0o755
    assert [path.name for path in shared.iterdir()] == ["file"]


def test_only_its_owner_can_reach_the_control_socket(hive):
    assert stat.S_IMODE(hive.state_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE((hive.state_dir / "control.sock").stat().st_mode) == 0o600
    assert stat.S_IMODE((hive.state_dir / "secret").stat().st_mode) == 0o600


def test_a_state_directory_with_a_long_name_works_too(tmp_path):
    with running_hive(tmp_path / ("long" * 30) / "state", QUICK) as hive:
        assert hive.ready()["state"] == "idle"


def test_an_ipv6_listener_works(tmp_path):
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with running_hive(tmp_path / "state", {**QUICK, "server.host": "::1"}) as hive:
        assert "[::1]" in hive.log("hive_listening")[0]["url"]


def test_sigterm_ends_every_worker_and_leaves_nothing(start_hive):
    hive = start_hive()
    workers = [hive.ready() for _ in range(3)]
    assert hive.stop() == 0
    assert hive.processes() == []
    assert not any(is_alive(worker[pid]) for worker in workers for pid in ("pid", "engine_pid"))
    left = sorted(path.name for path in hive.state_dir.iterdir())
    assert left == [
        "lock",
        "models.db",
        "rbee.db",
        "secret",
        "workers",
    ]
    assert list((hive.state_dir / "workers").iterdir()) == []


def test_sigterm_while_a_worker_starts_leaves_nothing(start_hive):
    hive = start_hive()
    hive.spawn(engine_args=["--load-seconds", "30"])
    assert hive.stop() == 0
    assert hive.processes() == []


def test_a_stopping_hive_refuses_inference_and_still_says_what_it_does(start_hive):
    hive = start_hive()
    worker_id = hive.ready(engine_args=["--tokens-per-second", "5"])["worker_id"]
    body = {"model": worker_id, "messages": [], "max_tokens": 500, "stream": True}
    with hive.stream("/v1/chat/completions", body=body) as lines:
        next(iter(lines))
        hive.signal(signal.SIGTERM)
        wait_for(lambda: hive.get("/readyz").status == 503, "readyz says that it stops")
        refused = hive.post("/v1/chat/completions", {**body, "stream": False})
        assert (refused.status, refused.json["error"]["code"]) == (503, "shutting_down")
        assert "retry-after" in refused.headers
        assert hive.worker(worker_id)["state"] == "draining"
        hive.signal(signal.SIGINT)
        assert hive.process.wait(60) == 0
    assert hive.processes() == []


def test_config_show_names_each_origin_and_no_secret():
    shown = subprocess.run(
        [sys.executable, "-m", "rbee.cli.hive", "config", "show"],
        env=clean_environ({"RBEE_API_TOKEN": "a-token-that-is-long-enough", "RBEE_HIVE__SERVER__PORT": "9300"}),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert "a-token-that-is" not in shown
    assert any("9300" in line and "RBEE_HIVE__SERVER__PORT" in line for line in shown.splitlines())
    assert any("stale_after" in line and "default" in line for line in shown.splitlines())


def test_the_process_environment_gives_no_worker_the_hives_token(start_hive):
    hive = start_hive(environ={"RBEE_API_TOKEN": "a-token-that-is-long-enough"})
    answer = hive.post("/v1/workers/spawn", {"model_ref": "synthetic:x"}, token="a-token-that-is-long-enough")
    assert answer.status == 200
    wait_for(lambda: len(hive.processes()) == 2, "keeper and engine run")
    for pid in hive.processes():
        environ, command = (Path(f"/proc/{pid}/{name}").read_bytes() for name in ("environ", "cmdline"))
        assert b"a-token-that-is-long-enough" not in environ + command
        assert b"rbee-worker." not in command
