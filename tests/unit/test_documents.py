"""Documents that say what the code says."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_diagram_of_a_workers_life_is_the_table():
    check = subprocess.run([sys.executable, "scripts/diagram.py", "--check"], cwd=ROOT, check=False)
    assert check.returncode == 0, "run: .venv/bin/python scripts/diagram.py"
