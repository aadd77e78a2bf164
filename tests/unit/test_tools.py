import sys
from pathlib import Path

import pytest

from tests.tools import need_tool


def test_tool_that_is_there_is_found(monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert Path(need_tool(Path(sys.executable).name)).exists()


def test_missing_tool_skips_the_test(monkeypatch):
    monkeypatch.delenv("RBEE_REQUIRE_TOOLS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="scripts/tools"):
        need_tool("rbee-no-such-tool")


def test_missing_tool_fails_the_test_where_tools_are_required(monkeypatch):
    monkeypatch.setenv("RBEE_REQUIRE_TOOLS", "1")
    with pytest.raises(pytest.fail.Exception, match="scripts/tools"):
        need_tool("rbee-no-such-tool")
