"""Fixtures for all tests: unit tests of the shell run on trio's jumping clock."""

import pytest
import trio.testing


@pytest.fixture
def anyio_backend():
    """Virtual time: sleeps cost nothing, and their order is exact."""
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}
