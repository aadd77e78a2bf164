"""Fixtures of the tests with real processes."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.hives import QUICK, Hive, running_hive


@pytest.fixture
def hive(tmp_path: Path) -> Iterator[Hive]:
    """A hive with short heartbeats, and afterwards the proof that it left no process behind."""
    with running_hive(tmp_path / "state", QUICK) as started:
        yield started
    assert started.processes() == []


@pytest.fixture
def start_hive(tmp_path: Path) -> Iterator[Callable[..., Hive]]:
    """Starts hives with settings of their own; all are ended."""
    with ExitStack() as stack:

        def start(settings: dict[str, str] | None = None, name: str = "state", **options: Any) -> Hive:
            return stack.enter_context(running_hive(tmp_path / name, {**QUICK, **(settings or {})}, **options))

        yield start
