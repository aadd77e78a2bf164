"""The unit says what keeps workers alive under systemd, and systemd understands it."""

import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from rbee.cli.hive import main
from rbee.core import errors
from tests.tools import need_tool

UNIT = Path(__file__).parents[3] / "deploy" / "systemd" / "rbee-hive.service"


@pytest.fixture(scope="module")
def unit():
    parser = ConfigParser(strict=True, interpolation=None, delimiters=("=",))
    parser.optionxform = str
    parser.read_string(UNIT.read_text())
    return parser


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("KillMode", "process"),
        ("OOMPolicy", "continue"),
        ("OOMScoreAdjust", "-500"),
        ("Delegate", "yes"),
        ("LimitNOFILE", "1048576"),
        ("TimeoutStopSec", "45"),
        ("Restart", "on-failure"),
        ("User", "rbee"),
        ("StateDirectory", "rbee"),
        ("Environment", "RBEE_HIVE__SERVER__STATE_DIR=%S/rbee"),
        ("EnvironmentFile", "-/etc/rbee/rbee.env"),
        ("WatchdogSec", "60"),
    ],
)
def test_the_service_has(unit, name, value):
    assert unit["Service"][name] == value


def test_a_start_that_cannot_succeed_is_not_repeated(unit):
    """Bad settings, and a port or directory that is taken."""
    hopeless = (errors.SettingsError, errors.UnsafeBind, errors.PortInUse, errors.StateDirectoryInUse)
    statuses = set(map(int, unit["Service"]["RestartPreventExitStatus"].split()))
    assert statuses == {error.exit_code for error in hopeless}
    assert errors.StartupError.exit_code not in statuses


def test_nothing_in_it_breaks_an_engine_or_the_workers_that_outlive_the_hive(unit):
    harmful = {"MemoryDenyWriteExecute", "PrivateDevices", "PrivateTmp", "ProtectHome", "NoNewPrivileges"}
    harmful |= {"ExecStopPost", "RuntimeMaxSec", "MemoryMax", "DynamicUser", "RemoveIPC"}
    assert not harmful & set(unit["Service"])


def test_its_command_is_one_that_the_hive_has(unit):
    program, command, *options = unit["Service"]["ExecStart"].split()
    assert Path(program).name == "rbee-hive"
    known = {name for parameter in main.commands[command].params for name in parameter.opts}
    assert {word for word in options if word.startswith("-")} <= known


def test_systemd_understands_every_line(tmp_path):
    systemd_analyze = need_tool("systemd-analyze")
    copy = tmp_path / UNIT.name
    lines = UNIT.read_text().splitlines(keepends=True)
    program = shutil.which("true") or sys.executable
    # It also looks whether the program exists, which that of the unit does not here.
    copy.write_text("".join(f"ExecStart={program}\n" if line.startswith("ExecStart=") else line for line in lines))
    done = subprocess.run([systemd_analyze, "verify", str(copy)], capture_output=True, text=True, check=False)
    # It may have something to say about other units of this machine.
    said = [line for line in (done.stdout + done.stderr).splitlines() if UNIT.stem in line]
    assert (done.returncode, said) == (0, [])
