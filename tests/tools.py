"""Programs that tests use beside Python; scripts/tools has the list and installs them."""

import os
import shutil
from pathlib import Path

import pytest

UNPACKED = Path(__file__).parent.parent / ".tools" / "root"


def need_tool(name: str) -> str:
    """The path of the program. Without it the test is skipped, or fails where RBEE_REQUIRE_TOOLS=1 is set."""
    search = os.pathsep.join([os.environ.get("PATH", ""), str(UNPACKED / "usr/bin"), str(UNPACKED / "bin")])
    if path := shutil.which(name, path=search):
        return path
    reason = f"{name} is not installed; scripts/tools gets it"
    if os.environ.get("RBEE_REQUIRE_TOOLS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
